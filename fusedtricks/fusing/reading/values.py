"""What a value can be while a forward is read, besides a node of the graph and a simple value of Python."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from enum import Enum
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch.fx import Node

from .errors import NotReadable

SETTINGS = (
    *(bool, int, float, complex, str, bytes, type(None), type(Ellipsis)),
    *(torch.dtype, torch.device, torch.memory_format, torch.layout, torch.Size),
)
"""Types that are compared by value and that a forward's decisions may depend on."""


@dataclass(frozen=True)
class Layer:
    """A module of the block, by its name within the block."""

    module: nn.Module
    path: str


@dataclass(frozen=True)
class Outside:
    """Any other object that the forward reaches, such as a configuration, and an expression that reaches it."""

    value: Any
    expression: str


@dataclass(frozen=True)
class Method:
    """A function bound to the object it was looked up on."""

    function: FunctionType
    owner: Any


@dataclass(frozen=True)
class Bound:
    """A built-in method of a value: of a node (its name), a collection or a setting."""

    owner: Any
    name: str


@dataclass(eq=False)
class Collection:
    """A list, tuple, set or dictionary of values.

    Attributes:
        values: in a collection of that kind.
        own: the forward created it, so that nobody else sees it.
        role: "" for what it is, `ITERATOR` or `VIEW` for a tuple that stands for one, and can only be looped over.
        sources: the collections that an iterator or view looks at, as they were when it was made.
    """

    values: Any
    own: bool = True
    role: str = ""
    sources: tuple[Snapshot, ...] = ()

    def is_own_and_mutable(self) -> bool:
        """Whether the forward may set items without anybody else seeing it."""
        return self.own and not self.role and self.kind in (list, dict)

    @property
    def kind(self) -> type:
        return type(self.values)

    def items(self) -> list[Any]:
        """What iteration gives.

        Raises:
            NotReadable: an iterator has given it already, or what it looks at has changed.
        """
        if self.role == SPENT or not all(source.holds() for source in self.sources):
            raise NotReadable(f"its forward loops over {what(self)} again, or over what has changed")
        if self.role == ITERATOR:
            self.role = SPENT
        return list(self.values)


class Snapshot:
    """What a collection contains at some time."""

    def __init__(self, collection: Collection) -> None:
        self._collection, self._contents = collection, _contents(collection)

    def holds(self) -> bool:
        """Whether the collection still contains the same."""
        now = _contents(self._collection)
        return len(now) == len(self._contents) and all(a is b for a, b in zip(now, self._contents, strict=True))


def _contents(collection: Collection) -> list[Any]:
    values = collection.values
    return [*values, *values.values()] if isinstance(values, dict) else list(values)


def snapshots(*values: Any) -> tuple[Snapshot, ...]:
    """Of all collections that a loop over these values looks at."""
    found = [value for value in values if isinstance(value, Collection)]
    return tuple(snapshot for value in found for snapshot in (*value.sources, Snapshot(value)))


ITERATOR, VIEW, SPENT = "an iterator", "a view", "an iterator that has ended"


def what(value: Any) -> str:
    """What a value is, for messages."""
    if isinstance(value, Collection):
        return value.role or f"a {value.kind.__name__}"
    return f"a {type(value.value).__name__}" if isinstance(value, Outside) else f"a {type(value).__name__}"


def is_setting(value: Any) -> bool:
    kind = type(value)
    return kind in SETTINGS or is_enumeration(kind)


def is_enumeration(kind: type) -> bool:
    """Whether a class is an Enum whose members compare by code of Python's own."""
    return issubclass(kind, Enum) and all(_is_of_python(kind, name) for name in _ASKED)


_ASKED = ("__eq__", "__ne__", "__lt__", "__hash__", "__bool__", "__str__", "__repr__", "__format__", "__len__")


def _is_of_python(kind: type, name: str) -> bool:
    owner = next((base for base in kind.__mro__ if name in vars(base)), None)
    # A class with a mixin type gets that type's methods, or Enum's own, from the metaclass.
    method = vars(owner)[name] if owner else None
    module = getattr(method, "__module__", None) or getattr(getattr(method, "__objclass__", None), "__module__", None)
    return owner is None or module in ("builtins", "enum")


def is_known(value: Any) -> bool:
    """Whether a value is the same at every call, and simple: a setting or a collection of settings."""
    if isinstance(value, Collection):
        if value.role:
            return False
        inside = [*value.values, *value.values.values()] if isinstance(value.values, dict) else list(value.values)
        return all(is_known(item) for item in inside)
    if isinstance(value, slice):
        return all(is_known(part) for part in (value.start, value.stop, value.step))
    return is_setting(value)


def plain(value: Any) -> Any:
    """A known value as Python has it."""
    if isinstance(value, Collection):
        if isinstance(value.values, dict):
            return {key: plain(item) for key, item in value.values.items()}
        return type(value.values)(plain(item) for item in value.values)
    return value


def wrapped(value: Any) -> Any:
    """The reverse of `plain`."""
    if type(value) is dict:
        return Collection({key: wrapped(item) for key, item in value.items()})
    if type(value) in (list, tuple, set):
        return Collection(type(value)(wrapped(item) for item in value))
    return value


PURE = {
    getattr,
    *(operator.getitem, operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge),
    *(operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv, operator.mod, operator.neg),
    *(operator.and_, operator.or_, operator.xor, operator.not_),
}
PURE_METHODS = {
    "dim",
    "size",
    "numel",
    "ndimension",
    "nelement",
    "stride",
    "is_floating_point",
    "is_complex",
    "get_device",
}


def only_looks(node: Node) -> bool:
    """Whether a node of a graph's beginning looks at a value and does nothing else."""
    if node.op == "call_function":
        return node.target in PURE
    return node.op in ("placeholder", "get_attr") or (node.op == "call_method" and node.target in PURE_METHODS)
