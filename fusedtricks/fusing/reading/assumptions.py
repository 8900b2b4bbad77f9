"""What a graph takes for granted about the program, as conditions that are checked at each call."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from keyword import iskeyword
from types import BuiltinFunctionType, FunctionType, MethodDescriptorType, ModuleType, WrapperDescriptorType
from typing import Any

import torch

from ..layers.classes import stock_class
from .values import SETTINGS


class Assumptions:
    """Collects the checks of a graph as conditions of Python, in which `self` is the block.

    The checks look at the block through names and hold no modules, so copies of the block share them.
    """

    def __init__(self) -> None:
        self.followed: dict[str, None] = {}  # names of the modules whose forwards are part of the graph
        self._lines: dict[str, bool] = {}  # in order, each once: finds a module, or is a condition
        self.constants: dict[str, Any] = {}
        self._names: dict[int, str] = {}
        self._modules: dict[str, str] = {"": "self"}
        self._layers: dict[str, tuple[tuple[type, ...], Any]] = {}

    def constant(self, value: Any) -> str:
        """A name for an object of the program."""
        if id(value) not in self._names:
            self._names[id(value)] = f"k{len(self._names)}"
            self.constants[self._names[id(value)]] = value
        return self._names[id(value)]

    def module(self, path: str) -> str:
        """A variable that holds the module of that name; without it, the check fails."""
        if path not in self._modules:
            owner, _, name = path.rpartition(".")
            variable = f"m{len(self._modules)}"
            self._lines[f"{variable} = {self.module(owner)}._modules[{name!r}]"] = True
            self._modules[path] = variable
        return self._modules[path]

    def require(self, condition: str) -> None:
        self._lines.setdefault(condition, False)

    def is_layer(self, path: str, classes: tuple[type, ...], inplace: Any) -> None:
        """The module has one of these classes, with the forwards that they have now, and works in place as it does now.

        Not checked for members of chains, which are looked at when the chain runs.
        """
        self._layers[path] = (classes, inplace)

    def is_kept(self, path: str, kind: Any) -> None:
        """The module has this class, or the one that was derived from it to fuse it."""
        found, stock = f"{self.module(path)}.__class__", self.constant(kind)
        self.require(f"{found} is {stock} or {self.constant(stock_class)}({found}) is {stock}")

    def is_of_class(self, path: str, kind: type) -> None:
        self.require(f"{self.module(path)}.__class__ is {self.constant(kind)}")
        self.has_attribute(kind, "forward")

    def has_attribute(self, kind: type, name: str) -> None:
        """A class still has the function that it has now."""
        self.require(f"{dotted(self.constant(kind), name)} is {self.constant(getattr(kind, name))}")

    def has_defaults(self, function: Any) -> None:
        """A function still has the defaults that it has now."""
        for name in ("__defaults__", "__kwdefaults__"):
            if defaults := getattr(function, name):
                self.require(f"{self.constant(function)}.{name} is {self.constant(defaults)}")

    def has_no_hooks(self, path: str) -> None:
        module = self.module(path)
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        self.require("not (" + " or ".join(f"{module}.{name}" for name in hooks) + ")")
        self.require(f"'forward' not in {module}.__dict__")

    def has_members(self, path: str, members: list[str]) -> None:
        self.require(f"list({self.module(path)}._modules) == {self.constant(members)}")

    def is_value(self, expression: str, value: Any) -> None:
        """An expression still gives the same: an equal setting, or the same function or class."""
        if value is None or isinstance(value, bool):
            self.require(f"{expression} is {value}")
        elif type(value) in SETTINGS:
            # The class too, as 1 == True, but unequal settings of one class are told apart by their value alone.
            name = self.constant(value)
            self.require(f"{expression} == {name} and {expression}.__class__ is {name}.__class__")
        else:
            self.require(f"{expression} is {self.constant(value)}")

    def note_layers(self, members: Collection[str]) -> None:
        """Adds the conditions on layers, but for `members`, those in chains."""
        for path, (classes, inplace) in self._layers.items():
            if path not in members:
                if inplace is not None:
                    self.is_value(f"{self.module(path)}.inplace", inplace)
                found = f"{self.module(path)}.__class__"
                self.require(" or ".join(f"{found} is {self.constant(kind)}" for kind in classes))
                for kind in classes:
                    self.has_attribute(kind, "forward")

    def lines(self, otherwise: str) -> list[str]:
        """The statements that find the modules and check everything; `otherwise` is the statement for a failure."""
        return [line if is_module else f"if not ({line}): {otherwise}" for line, is_module in self._lines.items()]


def dotted(expression: str, name: str) -> str:
    """An expression for an attribute."""
    is_name = name.isidentifier() and not iskeyword(name)
    return f"{expression}.{name}" if is_name else f"getattr({expression}, {name!r})"


def is_of_the_program(value: Any) -> bool:
    """Whether a value is part of the program's text: a function, class or module of Python."""
    return type(value) in _PROGRAM or issubclass(type(value), type)


_PROGRAM = (
    *(FunctionType, BuiltinFunctionType, ModuleType, MethodDescriptorType, WrapperDescriptorType),
    *(type(cache(is_of_the_program)), type(torch.ops.aten.relu)),
)
