"""Which names the user's code sets when it runs: what a forward reads after that cannot be taken as known before."""

from __future__ import annotations

import dis
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

from torch import nn

ANYTHING = "*"
_SETS = ("STORE_ATTR", "DELETE_ATTR", "STORE_GLOBAL", "DELETE_GLOBAL")
_MAY_SET = {
    **dict.fromkeys(("train", "eval"), "training"),
    **dict.fromkeys(("setattr", "__dict__", "__setattr__"), ANYTHING),
}
"""What code may set that mentions a name."""


class Effects:
    """Finds the names that functions set, by their bytecode; each class and function once."""

    def __init__(self) -> None:
        self._of: dict[Any, frozenset[str]] = {}

    def of_module(self, module: nn.Module) -> set[str]:
        """The names that the forwards of a module and all below it may set."""
        names: set[str] = set()
        todo, seen = [module], {module}
        while todo:
            current = todo.pop()
            names |= self._of_class(type(current))
            for hook in (*current._forward_hooks.values(), *current._forward_pre_hooks.values()):
                names |= self.of_function(hook) if isinstance(hook, FunctionType) else {ANYTHING}
            below = [child for child in current._modules.values() if child is not None and child not in seen]
            seen.update(below)
            todo += below
        return names

    def _of_class(self, kind: type) -> frozenset[str]:
        if kind not in self._of:
            functions = {
                name: found
                for base in reversed(kind.__mro__)
                if base.__module__.split(".")[0] not in ("torch", "fusedtricks", "builtins")
                for name, found in vars(base).items()
            }
            codes = _reachable(functions, ["forward", "__call__"])
            self._of[kind] = frozenset(name for code in codes for name in _names_set(code))
        return self._of[kind]

    def of_function(self, function: FunctionType) -> frozenset[str]:
        """The names that a function and those that it calls by a global name may set."""
        if function not in self._of:
            self._of[function] = frozenset()
            codes = _reachable(function.__globals__, [], function)
            self._of[function] = frozenset(name for code in codes for name in _names_set(code))
        return self._of[function]


def _reachable(space: dict[str, Any], names: list[str], *functions: FunctionType) -> Iterator[CodeType]:
    """The code of functions, and of all that they name."""
    todo = [*functions, *(found for name in names for found in _functions_of(space.get(name)))]
    seen = set(todo)
    while todo:
        function = todo.pop()
        for code in _with_nested(function.__code__):
            yield code
            named = [found for name in code.co_names for found in _functions_of(space.get(name))]
            named += [found for name in code.co_names for found in _functions_of(function.__globals__.get(name))]
            new = [found for found in named if found not in seen and not _is_of_torch(found)]
            seen.update(new)
            todo += new


def _functions_of(value: Any) -> list[FunctionType]:
    """The functions behind an attribute of a class: a function, a property's, what a decorator wraps."""
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    if isinstance(value, property):
        functions: list[Any] = [value.fget, value.fset]
        return [found for found in functions if isinstance(found, FunctionType)]
    if not isinstance(value, FunctionType):
        return []
    function: FunctionType = value
    inner = function.__dict__.get("__wrapped__")
    return [function, *_functions_of(inner)] if inner is not function else [function]


def _is_of_torch(function: FunctionType) -> bool:
    return str(function.__globals__.get("__name__", "")).split(".")[0] in ("torch", "fusedtricks")


def _with_nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _with_nested(constant)


def _names_set(code: CodeType) -> Iterator[str]:
    for instruction in dis.get_instructions(code):
        name = instruction.argval
        is_free = instruction.opname == "STORE_DEREF" and name in code.co_freevars
        if instruction.opname in _SETS or is_free:
            yield str(name)
        elif instruction.opname.startswith("LOAD_") and type(name) is str and name in _MAY_SET:
            yield _MAY_SET[name]
