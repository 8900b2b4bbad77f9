"""What is checked and timed of a case."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .measure import Side


@dataclass(frozen=True)
class Workload:
    """A case, built.

    Attributes:
        sides: "eager" and "fused", and "copy" (`Tensor.copy_` of the input) where the case has it.
        compiled: makes the side that runs the eager code under torch.compile.
        check: raises `Mismatch` if the case must not be timed.
        bytes_kept: bytes that eager and fused keep for backward.
        elements: of the input.
        min_bytes: what the op has to move at least, each tensor read or written once; None where that means nothing.
        min_rounds: rounds to measure at least, however long they take.
        max_rounds: rounds to measure at most.
        threads: torch's threads while the case is checked and timed; None leaves the number as it is.
        bytes_at_rest: frees what the last call left behind; returns the bytes that one side alone holds between calls.
        facts: further columns of the case's row.
    """

    sides: dict[str, Side]
    compiled: Callable[[], Side]
    check: Callable[[], None]
    bytes_kept: Callable[[], tuple[int, int]]
    elements: int
    min_bytes: int | None
    min_rounds: int = 9
    max_rounds: int = 25
    threads: int | None = None
    bytes_at_rest: Callable[[], int] = lambda: 0
    facts: Mapping[str, Any] = field(default_factory=dict)
