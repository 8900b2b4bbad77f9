"""What a benchmark case is."""

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch

from .workload import Workload


@dataclass(frozen=True)
class Case:
    """An op at one shape, dtype, layout and direction.

    Attributes:
        op: name of the op.
        name: where the shape comes from, and the shape; of an "overhead" case, which op it is.
        shape: of the input.
        dtype: of the input; parameters are float32.
        layout: "contiguous" or "channels_last".
        direction: "forward", "forward+backward" or, for a network, "training step".
        build: makes what is checked and timed.
        device: "cpu" or "cuda".
    """

    op: str
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    layout: str
    direction: str
    build: "Callable[[Case], Workload]"
    device: str = "cpu"

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.layout == "channels_last" else torch.contiguous_format

    @property
    def id(self) -> str:
        """op/name/direction/dtype/layout, which patterns are matched against."""
        return "/".join((self.op, self.name, self.direction, self.dtype_name, self.layout))

    def matches(self, *patterns: str) -> bool:
        """Whether the id contains one of the patterns or, if that has wildcards, matches it as a whole."""
        return any(fnmatchcase(self.id, p) if set(p) & set("*?[") else p in self.id for p in patterns)


def shape_text(shape: tuple[int, ...]) -> str:
    """For example 32x64x56x56."""
    return "x".join(str(length) for length in shape)
