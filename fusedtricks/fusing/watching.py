"""Watches a forward while it is traced for anything that a graph would freeze or lose."""

from __future__ import annotations

import dis
import pickle
import random
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import CodeType, FrameType
from typing import Any

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

_LIBRARIES = {"torch", "fusedtricks", *sys.stdlib_module_names}
_STATEMENTS = {
    "STORE_ATTR": "sets an attribute",
    "DELETE_ATTR": "deletes an attribute",
    "STORE_SUBSCR": "sets an item",
    "DELETE_SUBSCR": "deletes an item",
    "STORE_GLOBAL": "sets a global variable",
    "DELETE_GLOBAL": "deletes a global variable",
    "BEFORE_WITH": "has a with statement",
    "SETUP_WITH": "has a with statement",
    "LOAD_SPECIAL": "has a with statement",
    "POP_EXCEPT": "catches exceptions",
    "SETUP_FINALLY": "catches exceptions",
}
"""What is refused in user code, keyed by bytecode instruction, for all Python versions."""

_QUESTIONS = ("type", "id", "vars", "globals", "locals")
"""Functions that would give answers about the trace's proxies instead of tensors."""

_BUILTINS = ("print", "open", "input", "exec", "eval", "setattr", "delattr", "next")
_MODULES = (
    "random",
    "logging",
    "warnings",
    "time",
    "torch.cuda",
    "torch.random",
    "torch.distributed",
    "torch.compiler",
)
_QUERIES = ("is_grad_enabled", "is_inference_mode_enabled", "is_autocast_enabled", "is_autocast_cpu_enabled")
# Also refused if torch calls them, on behalf of a user's decorator or method.
_MODULES_OF_TORCH = (
    "torch.utils.checkpoint",
    "torch.autograd.graph",
    "torch.autograd.function",
    "torch.utils._contextlib",
)
_METHODS_OF_MODULES = ("__setattr__", "__delattr__", "register_", "add_module")


class NotTraceable(Exception):
    """A module's forward cannot be written as a graph; the message says why."""


def is_library(name: str) -> bool:
    """Whether a Python module of that name is library code, not user code."""
    return name.split(".")[0] in _LIBRARIES


def module_of(frame: FrameType) -> str:
    """The name of the Python module that contains a frame's code."""
    return str(frame.f_globals.get("__name__", ""))


@contextmanager
def unchanged(root: nn.Module) -> Iterator[None]:
    """Context manager: NotTraceable if random numbers are drawn or module attributes change; restores both."""
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
    """Context manager: NotTraceable if code has side effects or computes with tensors, there and at the end."""
    watcher = _Watcher()
    with _profiler_set_aside(), _NothingIsComputed(watcher):
        sys.setprofile(watcher)
        try:
            yield
        finally:
            sys.setprofile(None)
    if watcher.seen:  # the user's code caught the exception
        raise NotTraceable(watcher.seen)


@contextmanager
def _profiler_set_aside() -> Iterator[None]:
    """Context manager: removes the profiling function. One written in C needs its own methods to stop and start it."""
    profiler = sys.getprofile()
    stop, start = getattr(profiler, "disable", None), getattr(profiler, "enable", None)
    stop() if stop else sys.setprofile(None)
    try:
        yield
    finally:
        start() if start else sys.setprofile(profiler)


class _Watcher:
    """A profiling function that raises an error for anything that a graph would lose."""

    seen = ""

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "c_call":
            what = "" if is_library(module_of(frame)) else _effect_of_builtin(argument)
        else:
            what = _effect_of_function(frame) if event == "call" else ""
        if what and not _is_importing(frame):
            self.refuse(what)

    def refuse(self, what: str) -> None:
        self.seen = f"its forward {what}"
        raise NotTraceable(self.seen)


class _NothingIsComputed(TorchDispatchMode):
    """Refuses every operator: operators that run during tracing would not be part of the graph."""

    def __init__(self, watcher: _Watcher) -> None:
        super().__init__()
        self._watcher = watcher

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._watcher.refuse("computes with tensors that are not its inputs or its own")


def _effect_of_builtin(function: Any) -> str:
    """The side effect of a built-in function called by user code, or ""."""
    name, library, owner = function.__name__, function.__module__ or "", getattr(function, "__self__", None)
    if isinstance(owner, random.Random) or type(owner).__module__.startswith("numpy.random"):
        return "draws random numbers"
    refused = (library == "builtins" and name in _BUILTINS) or library in _MODULES or name in _QUERIES
    return f"calls {name}" if refused else ""


def _effect_of_function(frame: FrameType) -> str:
    """The side effect that the function of a frame has, or could have according to its code, or ""."""
    library, name, caller = module_of(frame), frame.f_code.co_name, frame.f_back
    if not is_library(library):
        return _statement(frame.f_code)
    if library == nn.Module.__module__ and name.startswith(_METHODS_OF_MODULES):
        return f"changes a module by {name}"
    by_user = caller is not None and not is_library(module_of(caller))
    is_refused = library.startswith(_MODULES) or name in _QUERIES or (library == "torch" and name.startswith("set_"))
    if library.startswith(_MODULES_OF_TORCH) or (by_user and is_refused):
        return f"calls {library}.{name}"
    return ""


@cache
def _statement(code: CodeType) -> str:
    for instruction in dis.get_instructions(code):
        if instruction.opname == "STORE_DEREF" and instruction.argval in code.co_freevars:
            return "sets a variable of an enclosing function"
        if instruction.opname == "LOAD_GLOBAL" and instruction.argval in _QUESTIONS:
            return f"uses {instruction.argval} (in {code.co_name})"
        if instruction.opname in _STATEMENTS:
            return f"{_STATEMENTS[instruction.opname]} (in {code.co_name})"
    return ""


def _is_importing(frame: FrameType | None) -> bool:
    while frame and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


class _RandomStates:
    """The states of Python's random generator, and of NumPy's if loaded. torch's cannot change: no operators run."""

    def __init__(self) -> None:
        self._numpy = sys.modules.get("numpy.random")
        self._states = self._get()

    def _get(self) -> list[Any]:
        return [random.getstate(), *([self._numpy.get_state()] if self._numpy else [])]

    def restore(self) -> bool:
        """Restores the states; returns whether one had changed."""
        changed = pickle.dumps(self._get()) != pickle.dumps(self._states)
        random.setstate(self._states[0])
        if self._numpy:
            self._numpy.set_state(self._states[1])
        return changed


_State = list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]


def _state(root: nn.Module) -> _State:
    """The attributes of all modules, with copies of collections."""
    states = []
    for module in root.modules():
        attributes = dict(vars(module))
        states.append((vars(module), attributes, {k: v.copy() for k, v in attributes.items() if _is_collection(v)}))
    return states


def _is_collection(value: Any) -> bool:
    return isinstance(value, (list, dict, set, deque))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return list(a) == list(b) and all(x is y for x, y in zip(a.values(), b.values(), strict=True))
    return len(a) == len(b) and ((isinstance(a, set) and a == b) or all(x is y for x, y in zip(a, b, strict=True)))


def _restore(states: _State) -> str:
    """Restores changed attributes; returns their names."""
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
    collection.extend(content) if isinstance(collection, (list, deque)) else collection.update(content)
