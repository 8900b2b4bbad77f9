"""Which names the user's code sets when it runs: what a forward reads after that cannot be taken as known before."""

from __future__ import annotations

import dis
import functools
from collections import OrderedDict
from collections.abc import Iterator
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

from ..layers.libraries import is_library, library_of
from ..layers.walk import modules

ANYTHING, ITEMS = "*", "[]"
"""Marks for code that may set any name, and items of a collection."""
_CHANGES = (
    *("append", "extend", "insert", "pop", "remove", "clear", "sort", "reverse"),
    *("update", "setdefault", "popitem", "add", "discard"),
)
_SETS_ITEMS = ("STORE_SUBSCR", "DELETE_SUBSCR")
_SETS = ("STORE_ATTR", "DELETE_ATTR", "STORE_GLOBAL", "DELETE_GLOBAL")
_MAY_SET = {
    **dict.fromkeys(("train", "eval"), "training"),
    **dict.fromkeys(("setattr", "delattr", "vars", "__dict__", "__setattr__", "__delattr__"), ANYTHING),
    **dict.fromkeys(("register_buffer", "register_parameter", "register_module", "add_module"), ANYTHING),
    **dict.fromkeys(_CHANGES, ITEMS),
}
"""What code may set that mentions a name."""


class Effects:
    """Finds the names that functions set, by their bytecode; each class and function once."""

    def __init__(self) -> None:
        self._of: dict[Any, frozenset[str]] = {}

    def of_module(self, module: nn.Module) -> set[str]:
        """The names that the forwards of a module and all below it, and their hooks and callbacks, may set."""
        names: set[str] = set()
        for current in modules(module):
            names |= self._of_class(type(current))
            for value in vars(current).values():
                for called in _callables_in(value):
                    names |= self.of_function(called)
        return names

    def _of_class(self, kind: type) -> frozenset[str]:
        if kind not in self._of:
            bases = [base for base in kind.__mro__ if not is_library(base.__module__)]
            self._of[kind] = _names_of(_space(bases), ["forward", "__call__"])
        return self._of[kind]

    def of_methods(self, kind: type) -> frozenset[str]:
        """The names that any method of a class may set, apart from its constructor and operators."""
        space = _space([base for base in kind.__mro__ if not is_library(base.__module__)])
        return _names_of(space, [name for name in space if not name.startswith("__") or name in _CALLED])

    def of_function(self, function: FunctionType) -> frozenset[str]:
        """The names that a function and those that it calls by their names may set."""
        if function not in self._of:
            self._of[function] = frozenset()  # if it calls itself
            self._of[function] = _names_of({"": [function]}, [""])
        return self._of[function]


_CALLED = ("__call__", "__enter__", "__exit__", "__init__")
_Space = dict[str, list[FunctionType]]


def _space(bases: list[type]) -> _Space:
    """The functions of classes, by name: all of a name, because one may call the other by `super()`."""
    space: _Space = {}
    for base in bases:
        for name, found in vars(base).items():
            space.setdefault(name, []).extend(_functions_of(found))
    return space


def _names_of(space: _Space, names: list[str]) -> frozenset[str]:
    """The names that functions of a space, and all that they name, may set."""
    todo = [found for name in names for found in space.get(name, ())]
    seen, result = set(todo), set[str]()
    while todo:
        function = todo.pop()
        for code in _with_nested(function.__code__):
            result.update(_names_set(code))
            named = [found for name in code.co_names for found in space.get(name, ())]
            named += _named_globals(function, code)
            new = [found for found in named if found not in seen and not _is_of_torch(found)]
            seen.update(new)
            todo += new
    return frozenset(result)


def _named_globals(function: FunctionType, code: CodeType) -> Iterator[FunctionType]:
    """The functions that code may call by a global name, or as an attribute of a Python module or class."""
    values: list[Any] = [function.__globals__.get(name) for name in code.co_names]
    for value in values:
        yield from _functions_of(value)
        if type(value) is ModuleType and not is_library(value.__name__):
            yield from (found for name in code.co_names for found in _functions_of(vars(value).get(name)))
        elif issubclass(type(value), type) and not is_library(value.__module__):
            space = _space([base for base in value.__mro__ if not is_library(base.__module__)])
            yield from (found for name in {*code.co_names, *_CALLED} for found in space.get(name, ()))


def _callables_in(value: Any) -> list[FunctionType]:
    """The functions in an attribute of a module: hooks, and what its forward may call."""
    if type(value) in (list, tuple):
        return [found for item in value for found in _functions_of(item)]
    if type(value) in (dict, OrderedDict):
        return [found for item in value.values() for found in _functions_of(item)]
    return _functions_of(value)


def _functions_of(value: Any) -> list[FunctionType]:
    """The functions of the user's behind a value: a function, a method, a property's, what a decorator wraps."""
    kind = type(value)
    if kind in (staticmethod, classmethod, MethodType):
        value = value.__func__
    elif kind in (functools.partial, functools.partialmethod):
        value = value.func
    elif kind is property:
        return [found for accessor in (value.fget, value.fset) for found in _functions_of(accessor)]
    elif not issubclass(kind, (nn.Module, Tensor)) and type(kind.__call__) is FunctionType:
        value = kind.__call__  # an object that can be called
    if type(value) is not FunctionType:
        return []
    inside = [cell.cell_contents for cell in value.__closure__ or () if _has_value(cell)]
    return [value, *(found for found in inside if type(found) is FunctionType and found is not value)]


def _has_value(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def _is_of_torch(function: FunctionType) -> bool:
    return is_library(library_of(function))


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
        elif instruction.opname in _SETS_ITEMS:
            yield ITEMS
        elif instruction.opname.startswith("LOAD_") and type(name) is str and name in _MAY_SET:
            yield _MAY_SET[name]
