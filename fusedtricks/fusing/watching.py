"""Watches what a trace of a forward does beside recording operations, which a graph would not repeat."""

from __future__ import annotations

import dis
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import CodeType, FrameType
from typing import Any

import torch
from torch import nn

_LIBRARIES = {"torch", "fusedtricks", *sys.stdlib_module_names}
_EFFECTS_OF_MODULES = ("random", "logging", "warnings", "time", "torch.cuda")
_EFFECTS_ANYWHERE = ("torch.utils.checkpoint", "torch.autograd.graph")  # also where torch calls it in between
_SETS_GLOBALS = ", which sets a global variable"
_EFFECTS_OF_BUILTINS = ("print", "open", "input", "exec", "eval", "setattr", "delattr")


class NotTraceable(Exception):
    """Why a module's forward cannot be written as a graph."""


def is_library(name: str) -> bool:
    """Whether a Python module of that name is no user's code."""
    return name.split(".")[0] in _LIBRARIES


def module_of(frame: FrameType) -> str:
    """The name of the Python module that a frame's code is from."""
    return str(frame.f_globals.get("__name__", ""))


@contextmanager
def unchanged(root: nn.Module) -> Iterator[None]:
    """NotTraceable if within it random numbers are drawn or a module changes; what was is put back."""
    before, randomness = _state(root), _RandomStates()
    try:
        yield
    finally:
        changed, drawn = _restore(before), randomness.restore()
    if changed:
        raise NotTraceable(f"its forward changes {changed}")
    if drawn:
        raise NotTraceable("its forward draws random numbers")


@contextmanager
def without_effects() -> Iterator[None]:
    """NotTraceable where code outside of torch calls what has effects beyond its result, there and at the end."""
    watcher, profiler = _Watcher(), sys.getprofile()
    sys.setprofile(watcher)
    try:
        yield
    finally:
        sys.setprofile(profiler)
    if watcher.seen:  # and its exception was caught
        raise NotTraceable(watcher.seen)


class _Watcher:
    """A profiling function that raises at such a call."""

    seen = ""

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        caller = frame if event == "c_call" else frame.f_back
        if event not in ("call", "c_call") or caller is None:
            return
        what = _effect_of_builtin(argument) if event == "c_call" else _effect_of_function(frame)
        anywhere = what.startswith(_EFFECTS_ANYWHERE) or what.endswith(_SETS_GLOBALS)
        if what and (anywhere or not is_library(module_of(caller))) and not _is_importing(caller):
            self.seen = f"its forward calls {what}"
            raise NotTraceable(self.seen)


def _effect_of_builtin(function: Any) -> str:
    name, library = function.__name__, function.__module__ or ""
    has_effect = (library == "builtins" and name in _EFFECTS_OF_BUILTINS) or library in _EFFECTS_OF_MODULES
    return name if has_effect else ""


def _effect_of_function(frame: FrameType) -> str:
    library, name = module_of(frame), frame.f_code.co_name
    if library.startswith((*_EFFECTS_OF_MODULES, *_EFFECTS_ANYWHERE)):
        return f"{library}.{name}"
    return name + _SETS_GLOBALS if not is_library(library) and _sets_globals(frame.f_code) else ""


def _is_importing(frame: FrameType | None) -> bool:
    while frame and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


@cache
def _sets_globals(code: CodeType) -> bool:
    return any(i.opname in ("STORE_GLOBAL", "DELETE_GLOBAL") for i in dis.get_instructions(code))


_State = list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]


def _state(root: nn.Module) -> _State:
    """The attributes of all modules, with copies of those that are lists, sets or dictionaries."""
    states = []
    for module in root.modules():
        attributes = dict(vars(module))
        states.append((vars(module), attributes, {k: v.copy() for k, v in attributes.items() if _is_collection(v)}))
    return states


def _is_collection(value: Any) -> bool:
    return isinstance(value, (list, dict, set))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return list(a) == list(b) and all(x is y for x, y in zip(a.values(), b.values(), strict=True))
    return len(a) == len(b) and ((isinstance(a, set) and a == b) or all(x is y for x, y in zip(a, b, strict=True)))


def _restore(states: _State) -> str:
    """Puts changed attributes back; their names."""
    changed: set[str] = set()
    for present, attributes, copies in states:
        if not _same(present, attributes):
            changed |= {name for name in {*present, *attributes} if present.get(name) is not attributes.get(name)}
            _refill(present, attributes)
        for name, copied in copies.items():
            if not _same(attributes[name], copied):
                changed.add(name)
                _refill(attributes[name], copied)
    return ", ".join(sorted(changed))


def _refill(collection: Any, content: Any) -> None:
    collection.clear()
    collection.extend(content) if isinstance(collection, list) else collection.update(content)


class _RandomStates:
    """The states of the generators that a forward might use."""

    def __init__(self) -> None:
        self._python, self._torch = random.getstate(), torch.get_rng_state()

    def restore(self) -> bool:
        """Puts them back; whether one had changed."""
        same = self._python == random.getstate() and torch.equal(self._torch, torch.get_rng_state())
        random.setstate(self._python)
        torch.set_rng_state(self._torch)
        return not same
