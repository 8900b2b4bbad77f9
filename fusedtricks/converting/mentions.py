"""Names of attributes that a model's own code uses for more than a call with one argument: found by reading source.

`self.bn(x)` is such a call. `self.bn(x, skip)`, `self.features[0]`, `len(self.features)` and `for x in self.features`
are not: what they find or pass may not be there any more when modules have been joined or split.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Iterable, Iterator
from functools import cached_property, lru_cache
from types import FunctionType
from typing import Any

_BY_NAME = ("getattr", "get_submodule", "attrgetter")
_KNOWN = {"torch", "fusedtricks", *sys.stdlib_module_names} - {"builtins"}  # which is that of code run by exec


def mentioned(classes: Iterable[type]) -> frozenset[str] | None:
    """The names in all functions of these classes but `__init__`; None if the source of one cannot be read."""
    bases = {base for kind in classes for base in kind.__mro__ if base.__module__.split(".")[0] not in _KNOWN}
    names: set[str] = set()
    for function in {function for base in bases for function in _functions(base)}:
        found = _names(function)
        if found is None:
            return None
        names |= found
    return frozenset(names)


def _functions(kind: type) -> Iterator[FunctionType]:
    for name, value in vars(kind).items():
        if name != "__init__":
            yield from _functions_in(value)


def _functions_in(value: Any) -> Iterator[FunctionType]:
    """The functions that an attribute of a class consists of."""
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    if isinstance(value, property):
        yield from (f for part in (value.fget, value.fset, value.fdel) for f in _functions_in(part))
    elif isinstance(value, cached_property):
        yield from _functions_in(value.func)
    elif isinstance(value, FunctionType):
        yield inspect.unwrap(value)


@lru_cache(4096)
def _names(function: FunctionType) -> frozenset[str] | None:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    visitor = _Visitor()
    visitor.visit(tree)
    return frozenset(visitor.names)


class _Visitor(ast.NodeVisitor):
    def __init__(self) -> None:
        self.names: set[str] = set()

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.ctx, ast.Load):
            self.names.add(node.attr)
        self.visit(node.value)

    def visit_Call(self, node: ast.Call) -> None:
        takes_one = len(node.args) == 1 and not node.keywords and not isinstance(node.args[0], ast.Starred)
        is_plain = takes_one and isinstance(node.func, ast.Attribute)
        self.visit(node.func.value if is_plain else node.func)  # type: ignore[attr-defined]
        for argument in (*node.args, *node.keywords):
            self.visit(argument)
        if getattr(node.func, "id", getattr(node.func, "attr", "")) in _BY_NAME:
            texts = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            self.names.update(name for text in texts if isinstance(text, str) for name in text.split("."))
