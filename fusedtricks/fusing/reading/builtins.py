"""The built-in functions and classes that the reader answers itself."""

from __future__ import annotations

import operator
from collections.abc import Callable
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ..layers.classes import stock_class
from .assumptions import is_of_the_program
from .errors import Absent, NotReadable
from .expressions import Expressions
from .values import (
    ITERATOR,
    VIEW,
    Bound,
    Collection,
    Layer,
    Method,
    Outside,
    is_known,
    is_setting,
    plain,
    snapshots,
    what,
)

_Handler = Callable[[Expressions, list[Any], dict[str, Any]], Any]


def built_in(function: Any) -> _Handler | None:
    """What answers for a function or class, by identity: hashing it could run code of the user's."""
    return _BY_IDENTITY.get(id(function))


def _isinstance(calls: Expressions, arguments: list[Any], keywords: dict[str, Any]) -> bool:
    value, kinds = arguments
    asked = tuple(kinds.items()) if isinstance(kinds, Collection) else (kinds,)
    if not all(type(kind) in _METACLASSES for kind in asked):
        raise NotReadable("its forward asks for a type that is not known")
    if isinstance(value, Node):
        if value.op == "placeholder":
            return issubclass(Tensor, asked)
        raise NotReadable("its forward asks for the type of an intermediate value")
    if isinstance(value, Layer):
        return issubclass(type(value.module), asked)
    if isinstance(value, Collection):
        if value.role:
            raise NotReadable(f"its forward asks for the type of {what(value)}")
        return issubclass(value.kind, asked)
    if isinstance(value, Outside):
        constant = calls.state.assumed.constant(type(value.value))
        calls.state.assumed.require(f"type({value.expression}) is {constant}")
        return issubclass(type(value.value), asked)
    if not (is_setting(value) or is_of_the_program(value)):
        raise NotReadable(f"its forward asks for the type of {what(value)}")
    return issubclass(type(value), asked)


_METACLASSES = (type, type(Tensor), type(torch.nn.Parameter))
"""Classes of classes whose instances are told by Python alone."""


def _getattr(calls: Expressions, arguments: list[Any], keywords: dict[str, Any]) -> Any:
    owner, name, *default = arguments
    if not isinstance(name, str):
        raise NotReadable("its forward reads an attribute whose name is not known")
    if isinstance(owner, Node):
        if default:
            raise NotReadable("its forward asks whether a tensor has an attribute")
        return calls.attribute(owner, name)
    try:
        found = calls.state.attribute(owner, name)
    except Absent:
        if not default:
            raise NotReadable(f"its forward reads {name}, which does not exist") from None
        return default[0]
    return calls.call_function(found.fget, [owner], {}) if isinstance(found, property) else found


def _hasattr(calls: Expressions, arguments: list[Any], keywords: dict[str, Any]) -> bool:
    owner, name = arguments
    if isinstance(owner, Node) or not isinstance(name, str):
        raise NotReadable("its forward asks whether a tensor has an attribute")
    try:
        found = calls.state.attribute(owner, name)
    except Absent:
        return False
    if isinstance(found, property):
        raise NotReadable(f"its forward asks whether there is {name}, which is computed")
    return True


def _length(calls: Expressions, arguments: list[Any], keywords: dict[str, Any]) -> Any:
    (value,) = arguments
    if isinstance(value, Node):
        return calls.emit("call_function", len, (value,))
    if isinstance(value, Layer):
        return calls.length_of(value)
    if isinstance(value, Collection) and value.role in ("", VIEW):
        return len(value.items())
    if is_setting(value):
        return len(plain(value))
    raise NotReadable(f"its forward asks for the length of {what(value)}")


def _sum(calls: Expressions, arguments: list[Any], keywords: dict[str, Any]) -> Any:
    values, *start = arguments
    total: Any = start[0] if start else keywords.get("start", 0)
    for value in calls.iterate(values):
        total = calls.operate(operator.add, total, value)
    return total


def _extreme(function: Callable[..., Any]) -> _Handler:
    def extreme(calls: Expressions, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        values = arguments if len(arguments) > 1 else calls.iterate(arguments[0])
        if keywords or not all(is_known(value) for value in values):
            raise NotReadable("its forward takes decisions by the values or shapes of tensors")
        return function(map(plain, values))

    return extreme


def _range(calls: Expressions, arguments: list[Any], keywords: dict[str, Any]) -> Any:
    if not all(type(value) is int for value in arguments):
        raise NotReadable("its forward loops as often as a tensor says")
    numbers = range(*arguments)
    if len(numbers) > 10_000:
        raise NotReadable("its forward loops too often")
    return Collection(tuple(numbers), role=VIEW)


def _enumerate(calls: Expressions, arguments: list[Any], keywords: dict[str, Any]) -> Any:
    start = keywords.get("start", arguments[1] if len(arguments) > 1 else 0)
    if type(start) is not int:
        raise NotReadable("its forward counts from what a tensor says")
    return _iterator([Collection(pair) for pair in enumerate(calls.iterate(arguments[0]), start)], arguments)


def _zip(calls: Expressions, arguments: list[Any], keywords: dict[str, Any]) -> Any:
    lists = [calls.iterate(value) for value in arguments]
    if keywords.get("strict") and len({len(values) for values in lists}) > 1:
        raise NotReadable("its forward zips collections of different lengths")
    return _iterator([Collection(group) for group in zip(*lists, strict=False)], arguments)


def _reversed(calls: Expressions, arguments: list[Any], keywords: dict[str, Any]) -> Any:
    return _iterator(calls.iterate(arguments[0])[::-1], arguments)


def _iterator(values: list[Any], sources: list[Any]) -> Collection:
    return Collection(tuple(values), role=ITERATOR, sources=snapshots(*sources))


def _truths(function: Callable[..., bool]) -> _Handler:
    def truths(calls: Expressions, arguments: list[Any], keywords: dict[str, Any]) -> bool:
        return function([calls.decide(value) for value in calls.iterate(arguments[0])])

    return truths


def _callable(calls: Expressions, arguments: list[Any], keywords: dict[str, Any]) -> bool:
    (value,) = arguments
    if isinstance(value, (Layer, Method, Bound, FunctionType, BuiltinFunctionType, type)):
        return True
    if is_known(value):
        return False
    raise NotReadable("its forward asks whether an object can be called")


def _checked(calls: Expressions, arguments: list[Any], keywords: dict[str, Any]) -> None:
    """`torch._assert`."""
    condition = arguments[0] if arguments else keywords["condition"]
    if not isinstance(condition, Node):
        if not calls.decide(condition):
            raise NotReadable("its forward always raises an error")
        return
    message = arguments[1] if len(arguments) > 1 else keywords.get("message", "")
    calls.emit("call_function", torch._assert, (condition, message))


def _never(calls: Expressions, arguments: list[Any], keywords: dict[str, Any]) -> bool:
    """For what is False wherever a graph runs: with plain tensors, and not in a script or trace."""
    return False


def _of(kind: type) -> _Handler:
    """A class that makes a list, tuple, set or dictionary."""

    def make(calls: Expressions, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        if kind is dict:
            first = arguments[0].values if arguments and isinstance(arguments[0], Collection) else {}
            if arguments and (not isinstance(arguments[0], Collection) or arguments[0].kind is not dict):
                raise NotReadable("its forward makes a dictionary of pairs")
            return Collection({**first, **keywords})
        values = calls.iterate(arguments[0]) if arguments else []
        if kind is set and not all(is_setting(value) for value in values):
            raise NotReadable("its forward makes a set of tensors")
        return Collection(kind(values))

    return make


def _number(kind: type) -> _Handler:
    def convert(calls: Expressions, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        if keywords:
            raise NotReadable(f"its forward makes a {kind.__name__} with options")
        if len(arguments) == 1 and isinstance(arguments[0], Node):
            if kind is bool:
                raise NotReadable("its forward takes decisions by the values or shapes of tensors")
            return calls.emit("call_function", kind, arguments)
        if kind is bool and len(arguments) == 1:
            return calls.decide(arguments[0])
        if not all(is_known(value) for value in arguments):
            raise NotReadable(f"its forward makes a {kind.__name__} of an object")
        return kind(*map(plain, arguments))

    return convert


def _type(calls: Expressions, arguments: list[Any], keywords: dict[str, Any]) -> Any:
    (value,) = arguments
    if isinstance(value, Layer):
        return stock_class(type(value.module))
    if is_setting(value):
        return type(value)
    raise NotReadable("its forward uses type")


_HANDLERS: dict[Any, _Handler] = {
    isinstance: _isinstance,
    getattr: _getattr,
    hasattr: _hasattr,
    len: _length,
    sum: _sum,
    min: _extreme(min),
    max: _extreme(max),
    any: _truths(any),
    all: _truths(all),
    callable: _callable,
    torch._assert: _checked,
    torch.jit.is_scripting: _never,
    torch.jit.is_tracing: _never,
    torch.overrides.has_torch_function: _never,
    torch.overrides.has_torch_function_unary: _never,
    torch.overrides.has_torch_function_variadic: _never,
    **{kind: _of(kind) for kind in (list, tuple, set, dict)},
    **{kind: _number(kind) for kind in (int, float, bool, str)},
    range: _range,
    enumerate: _enumerate,
    zip: _zip,
    reversed: _reversed,
    type: _type,
}
_BY_IDENTITY = {id(function): handler for function, handler in _HANDLERS.items()}
