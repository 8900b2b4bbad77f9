"""Recognises stochastic depth modules: ours, timm's, torchvision's and Hugging Face's, without importing the latter."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import nn

from ... import nn as ftnn
from .classes import is_unchanged, remember


class DropPath(NamedTuple):
    """The arguments of `functional.drop_path`."""

    p: float
    mode: str
    scale_by_keep: bool


_Reader = Callable[[Any], DropPath]
_OF_PACKAGES: dict[str, _Reader] = {
    "timm.layers.drop.DropPath": lambda m: DropPath(m.drop_prob or 0.0, "row", m.scale_by_keep),
    "torchvision.ops.stochastic_depth.StochasticDepth": lambda m: DropPath(m.p, m.mode, True),
}
"""Keyed by the qualified name of the class."""

_READERS: dict[type, _Reader] = {ftnn.DropPath: lambda m: DropPath(m.drop_prob, "row", m.scale_by_keep)}
"""Keyed by class."""
remember(ftnn.DropPath)


def of_module(module: nn.Module) -> DropPath | None:
    """What a module of exactly a known type drops in training, or None. Also None for p = 1, left to the module."""
    kind = type(module)
    if kind not in _READERS and not torch.compiler.is_dynamo_compiling() and (reader := _reader(kind)):
        _READERS[kind] = reader
        remember(kind)
    read = _READERS.get(kind)
    if read is None or not is_unchanged(kind):
        return None
    found = read(module)
    is_known = isinstance(found.p, (int, float)) and 0 <= found.p < 1 and found.mode in ("row", "batch")
    return found if is_known else None


def _reader(kind: type[nn.Module]) -> _Reader | None:
    if kind.__call__ is not nn.Module.__call__:
        return None
    if kind.__name__.endswith("DropPath") and _is_same_code(kind.forward, _forward_in_transformers):
        return lambda m: DropPath(m.drop_prob, "row", True)
    return _OF_PACKAGES.get(f"{kind.__module__}.{kind.__qualname__}")


def _forward_in_transformers(self, hidden_states):  # type: ignore[no-untyped-def]
    """The forward that transformers copies from model to model."""
    if self.drop_prob == 0.0 or not self.training:
        return hidden_states
    keep_prob = 1 - self.drop_prob
    shape = (hidden_states.shape[0],) + (1,) * (hidden_states.ndim - 1)
    random_tensor = torch.rand(shape, dtype=hidden_states.dtype, device=hidden_states.device)
    random_tensor = torch.floor(random_tensor + keep_prob)
    return hidden_states.div(keep_prob) * random_tensor


def _is_same_code(function: Any, known: Any) -> bool:
    """Whether two functions have the same instructions; docstrings and annotations may differ."""
    if not isinstance(function, FunctionType) or function.__globals__.get("torch") is not torch:
        return False
    if function.__defaults__ or function.__closure__:
        return False
    a, b = function.__code__, known.__code__
    parts = ("co_code", "co_names", "co_varnames", "co_argcount", "co_kwonlyargcount")
    return all(getattr(a, part) == getattr(b, part) for part in parts) and a.co_consts[1:] == b.co_consts[1:]
