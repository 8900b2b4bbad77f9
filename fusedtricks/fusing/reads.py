"""Records which module attributes a forward reads while it is traced, so that a plan can check them later."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from .watching import NotTraceable, is_library

SETTINGS = (bool, int, float, str, bytes, type(None), torch.dtype, torch.device, torch.memory_format)
"""Types that a forward's decisions may depend on, and that are compared by value."""


class Reads:
    """The attributes read, keyed by the module's name within the root; mutable collections are copied."""

    def __init__(self, root: nn.Module) -> None:
        self._names = {module: name for name, module in root.named_modules()}
        self.of: dict[str, dict[str, Any]] = {}

    def note(self, module: nn.Module, name: str, value: Any) -> None:
        if isinstance(value, (nn.Module, Tensor)) or (isinstance(value, MethodType) and value.__self__ is module):
            return
        if module not in self._names:
            raise NotTraceable(f"its forward reads {name} of a module outside of it")
        self.of.setdefault(self._names[module], {})[name] = _comparable(name, value)


class Absent:
    """Stands for an attribute that was read but does not exist."""


def _members(module: nn.Module) -> Iterator[dict[str, Any]]:
    for name in ("_parameters", "_buffers", "_modules"):
        yield object.__getattribute__(module, "__dict__").get(name, {})


def _comparable(name: str, value: Any) -> Any:
    if isinstance(value, (list, dict, set)):
        return value.copy()
    if hasattr(type(value), "__next__") or isinstance(value, random.Random):
        raise NotTraceable(f"its forward reads {name}, which changes when it is read")
    return value


def is_same(now: Any, then: Any) -> bool:
    """Whether a value is the one that was read: settings and collections of them must be equal, others identical."""
    if now is then:
        return True
    if type(now) is not type(then):
        return False
    if isinstance(then, SETTINGS):
        return now == then
    if isinstance(then, (list, tuple)):
        return len(now) == len(then) and all(is_same(a, b) for a, b in zip(now, then, strict=True))
    if isinstance(then, dict):
        return list(now) == list(then) and all(is_same(now[key], then[key]) for key in then)
    return isinstance(then, set) and now == then


@contextmanager
def recorded(reads: Reads) -> Iterator[None]:
    """Context manager: records every module attribute that user code reads, except members and methods."""

    thread = get_ident()

    def read(module: nn.Module, name: str) -> Any:
        by_user = get_ident() == thread and not is_library(str(sys._getframe(1).f_globals.get("__name__", "")))
        try:
            value = object.__getattribute__(module, name)
        except AttributeError:
            if by_user and not any(name in members for members in _members(module)):
                reads.note(module, name, Absent)
            raise
        if by_user:
            reads.note(module, name, value)
        return value

    setattr(nn.Module, "__getattribute__", read)  # noqa: B010
    try:
        yield
    finally:
        delattr(nn.Module, "__getattribute__")
