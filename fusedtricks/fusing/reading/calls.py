"""Evaluates the calls of a forward: follows the user's functions, and makes nodes of everything else."""

from __future__ import annotations

import ast
import inspect
import operator
import sys
from collections.abc import Callable
from collections.abc import Collection as Names
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from ..layers.classes import stock_class
from .errors import Absent, NotReadable
from .expressions import Expressions
from .frame import Frame
from .state import State, children_of
from .values import Bound, Collection, Layer, Method, Outside, is_known, is_setting, plain, wrapped

_LIBRARIES = {"torch", "fusedtricks", *sys.stdlib_module_names}
_SEES_ITS_CALLER = ("warnings", "logging", "inspect", "sys", "gc", "traceback", "threading", "torch._dynamo")
_ALWAYS_FALSE: tuple[Any, ...] = (torch.jit.is_scripting, torch.jit.is_tracing)
"""Plans are never used while these answer True."""


def is_library(name: str | None) -> bool:
    """Whether a Python module of that name is library code, not user code."""
    return (name or "").split(".")[0] in _LIBRARIES


class Calls(Expressions):
    """Evaluates calls.

    Args:
        state: looks up what the forward reads.
        graph: receives the nodes.
        inline: names of the modules to follow; the calls of all others become nodes.
    """

    def __init__(self, state: State, graph: Graph, inline: Names[str]) -> None:
        self.state, self.graph, self._inline = state, graph, inline
        self._depth = 0

    def run(self, function: FunctionType, frame: Frame) -> Any:
        """The result of a function's body."""
        raise NotImplementedError

    # --- Nodes ---

    def emit(self, op: str, target: Any, arguments: Any, keywords: Any = None) -> Node:
        given = tuple(self.argument(value) for value in arguments)
        named = {name: self.argument(value) for name, value in (keywords or {}).items()}
        return self.graph.create_node(op, target, given, named)

    def argument(self, value: Any) -> Any:
        """A value as the argument of a node."""
        if isinstance(value, Node) or is_setting(value):
            return value
        if isinstance(value, slice):
            return slice(*(self.argument(part) for part in (value.start, value.stop, value.step)))
        if isinstance(value, Layer):
            return self.graph.get_attr(value.path) if value.path else _refuse("passes itself on")
        if isinstance(value, Collection):
            if value.kind is dict:
                return {key: self.argument(item) for key, item in value.values.items()}
            if value.kind in (list, tuple):
                return value.kind(self.argument(item) for item in value.values)
        return _refuse(f"passes a {type(value).__name__} on")

    def is_tensor(self, node: Node) -> bool:
        """Whether a node certainly gives a tensor, or something else that is not None."""
        if node.op == "placeholder" or node.op == "get_attr":
            return True
        if node.op == "call_module":
            kind = type(self.state.module_at(str(node.target)))
            return kind.__module__.startswith(("torch.nn.", "fusedtricks.")) and kind is not nn.Sequential
        if node.op == "call_method":
            return node.target not in ("get", "pop")
        target = node.target
        name = getattr(target, "__module__", None) or "torch"
        return target is not getattr and (name in ("_operator", "math") or name.startswith("torch"))

    # --- Calls ---

    def _Call(self, node: ast.Call, frame: Frame) -> Any:
        if isinstance(node.func, ast.Name) and node.func.id == "super" and not frame.has_local("super"):
            return self._super(node, frame)
        if isinstance(node.func, ast.Attribute) and _is_super(node.func.value, frame):
            owner, layer = self._class_and_self(frame)
            callee: Any = self.state.next_in_line(owner, layer, node.func.attr)
        elif isinstance(node.func, ast.Attribute):
            of = self.evaluate(node.func.value, frame)
            callee = Bound(of, node.func.attr) if isinstance(of, Node) else self.attribute(of, node.func.attr)
        else:
            callee = self.evaluate(node.func, frame)
        arguments = self._elements(node.args, frame)
        return self.call(callee, arguments, self._keywords(node, frame))

    def _super(self, node: ast.Call, frame: Frame) -> Any:
        raise NotReadable("its forward passes super() on")

    def _class_and_self(self, frame: Frame) -> tuple[type, Layer]:
        owner = self.state.variable(frame.function, "__class__")
        first = frame.get(frame.function.__code__.co_varnames[0])
        if not isinstance(first, Layer):
            raise NotReadable("its forward uses super() of an object")
        return owner, first

    def _keywords(self, node: ast.Call, frame: Frame) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for keyword in node.keywords:
            value = self.evaluate(keyword.value, frame)
            if keyword.arg is not None:
                result[keyword.arg] = value
            elif isinstance(value, Collection) and value.kind is dict:
                result |= value.values
            else:
                raise NotReadable("its forward unpacks an object")
        return result

    def call(self, callee: Any, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        if isinstance(callee, Layer):
            return self._call_module(callee, arguments, keywords)
        if isinstance(callee, Method):
            return self._call_method(callee, arguments, keywords)
        if isinstance(callee, Bound):
            return self._call_bound(callee, arguments, keywords)
        if isinstance(callee, Node):
            raise NotReadable("its forward calls what it has computed")
        if isinstance(callee, FunctionType) and not is_library(callee.__module__):
            return self._follow_or_keep(callee, arguments, keywords)
        if isinstance(callee, type):
            return self._call_class(callee, arguments, keywords)
        return self._call_library(callee, arguments, keywords)

    # --- Modules and methods ---

    def _call_module(self, layer: Layer, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        module, kind = layer.module, type(layer.module)
        if kind.__call__ is not nn.Module.__call__:
            raise NotReadable(f"its forward calls {kind.__name__}, which has its own __call__")
        if not layer.path:
            raise NotReadable("its forward calls itself")
        if layer.path not in self._inline:
            _refuse_shared(arguments, keywords)
            return self.emit("call_module", layer.path, arguments, keywords)
        stock = stock_class(kind)
        function = stock.forward
        if not isinstance(function, FunctionType):
            raise NotReadable(f"{kind.__name__}.forward is not a function")
        self.state.assumed.has_no_hooks(layer.path)
        self.state.assumed.is_of_class(layer.path, stock)
        return self.call_function(function, [Layer(module, layer.path), *arguments], keywords)

    def _call_method(self, method: Method, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        owner, name = method.owner, method.function.__name__
        if isinstance(owner, Layer) and is_library(method.function.__module__):
            if name in ("children", "named_children") and method.function is getattr(nn.Module, name):
                return Collection(tuple(children_of(self.state, owner, name == "named_children")))
            if isinstance(owner.module, nn.ModuleDict) and method.function is getattr(nn.ModuleDict, name, None):
                return self._items_of(owner.module, self.state.members(owner), name)
            if isinstance(owner.module, nn.ParameterDict) and name in ("items", "keys", "values"):
                return self._items_of(owner.module, self.parameters(owner), name)
            if name not in ("forward", "_conv_forward", "_check_input_dim"):
                raise NotReadable(f"its forward calls {name} of a module")
        return self.call_function(method.function, [owner, *arguments], keywords)

    def _items_of(self, module: nn.Module, values: dict[str, Any], name: str) -> Any:
        found: dict[str, list[Any]] = {"items": [Collection(pair) for pair in values.items()], "keys": list(values)}
        found["values"] = list(values.values())
        if name not in found:
            raise NotReadable(f"its forward calls {name} of a {type(module).__name__}")
        return Collection(tuple(found[name]))

    # --- Functions of the user's ---

    def call_function(self, function: Any, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        """Follows a function of Python."""
        if not isinstance(function, FunctionType):
            raise NotReadable("its forward calls an object")
        if self._depth > 40:
            raise NotReadable(f"its forward calls {function.__name__} within itself")
        code = function.__code__
        if code.co_flags & (inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR):
            raise NotReadable(f"its forward calls {function.__name__}, a generator")
        self._depth += 1
        try:
            return self.run(function, Frame(function, self._bind(function, arguments, keywords)))
        finally:
            self._depth -= 1

    def _bind(self, function: FunctionType, arguments: list[Any], keywords: dict[str, Any]) -> dict[str, Any]:
        signature = inspect.signature(function, follow_wrapped=False)
        try:
            bound = signature.bind(*arguments, **keywords)
        except TypeError as error:
            raise NotReadable(f"its forward calls {function.__name__} wrongly: {error}") from None
        values: dict[str, Any] = {}
        for name, parameter in signature.parameters.items():
            if parameter.kind is parameter.VAR_POSITIONAL:
                values[name] = Collection(tuple(bound.arguments.get(name, ())))
            elif parameter.kind is parameter.VAR_KEYWORD:
                values[name] = Collection(dict(bound.arguments.get(name, {})))
            elif name in bound.arguments:
                values[name] = bound.arguments[name]
            else:
                values[name] = self._default(function, name, parameter.default)
        return values

    def _default(self, function: FunctionType, name: str, value: Any) -> Any:
        if is_setting(value) or isinstance(value, (FunctionType, type)):
            return value
        if isinstance(value, tuple) and all(is_setting(item) for item in value):
            return wrapped(value)
        raise NotReadable(f"the default of {name} in {function.__name__} is not a simple value")

    def _follow_or_keep(self, function: FunctionType, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        """Follows a user's function; one that cannot be followed becomes a node and runs as it is."""
        last = next(iter(reversed(self.graph.nodes)), None)
        try:
            return self.call_function(function, arguments, keywords)
        except NotReadable:
            for node in reversed(self.graph.nodes):
                if node is last:
                    break
                self.graph.erase_node(node)
            _refuse_shared(arguments, keywords)
            return self.emit("call_function", function, arguments, keywords)

    # --- Built-in functions and libraries ---

    def _call_bound(self, bound: Bound, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        owner, name = bound.owner, bound.name
        if isinstance(owner, Node):
            return self.emit("call_method", name, (owner, *arguments), keywords)
        if isinstance(owner, Collection):
            return self._call_collection(owner, name, arguments)
        if all(is_known(value) for value in (*arguments, *keywords.values())):
            try:
                return wrapped(
                    getattr(owner, name)(*map(plain, arguments), **{k: plain(v) for k, v in keywords.items()})
                )
            except Exception as error:
                raise NotReadable(f"its forward raises {type(error).__name__}") from None
        raise NotReadable(f"its forward calls {name} of a {type(owner).__name__}")

    def _call_collection(self, owner: Collection, name: str, arguments: list[Any]) -> Any:
        values = owner.values
        if owner.kind is dict and name in ("items", "keys", "values"):
            return Collection(tuple(Collection(i) if name == "items" else i for i in getattr(values, name)()))
        if owner.kind is dict and name == "get" and is_known(arguments[0]):
            return values.get(plain(arguments[0]), arguments[1] if len(arguments) > 1 else None)
        if name in ("index", "count") and is_known(owner) and is_known(arguments[0]):
            return getattr(plain(owner), name)(plain(arguments[0]))
        if name == "copy":
            return Collection(values.copy())
        if not owner.own:
            raise NotReadable(f"its forward changes a {owner.kind.__name__} that it did not make, by {name}")
        if owner.kind is list and name in ("append", "insert", "pop", "reverse"):
            return getattr(values, name)(*(plain(a) if is_known(a) and name != "append" else a for a in arguments))
        if owner.kind is list and name == "extend":
            return values.extend(self.iterate(arguments[0]))
        if owner.kind is dict and name == "update" and isinstance(arguments[0], Collection):
            return values.update(arguments[0].values)
        if owner.kind is dict and name in ("pop", "setdefault") and is_known(arguments[0]):
            return getattr(values, name)(plain(arguments[0]), *arguments[1:])
        raise NotReadable(f"its forward calls {name} of a {owner.kind.__name__}")

    def _call_class(self, kind: type, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        if kind in _CLASSES:
            return _CLASSES[kind](self, arguments, keywords)
        is_named_tuple = issubclass(kind, tuple) and hasattr(kind, "_fields")
        is_known = kind.__module__ != "builtins" and is_library(kind.__module__)
        if not (is_known or is_named_tuple) or issubclass(kind, nn.Module):
            raise NotReadable(f"its forward creates a {kind.__name__}")
        _refuse_shared(arguments, keywords)
        return self.emit("call_function", kind, arguments, keywords)

    def _call_library(self, function: Any, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        name = getattr(function, "__name__", type(function).__name__)
        if any(function is f for f in _ALWAYS_FALSE):
            return False
        if function in _FUNCTIONS:
            return _FUNCTIONS[function](self, arguments, keywords)
        library = getattr(function, "__module__", None) or "torch"
        if library == "builtins" and name not in ("print", "abs", "divmod", "round", "pow", "hash", "repr", "len"):
            raise NotReadable(f"its forward calls {name}")
        if isinstance(function, Outside) or library.startswith(_SEES_ITS_CALLER):
            raise NotReadable(f"its forward calls {name}")
        values = [*arguments, *keywords.values()]
        if library == "math" and all(is_known(value) for value in values):
            return wrapped(function(*map(plain, arguments)))
        return self.emit("call_function", function, arguments, keywords)


def _refuse(what: str) -> Any:
    raise NotReadable(f"its forward {what}")


def _refuse_shared(arguments: list[Any], keywords: dict[str, Any]) -> None:
    """Raises if user code would be given a list that the forward goes on to use: a node gets a copy."""
    for value in (*arguments, *keywords.values()):
        if isinstance(value, Collection) and value.kind not in (tuple,):
            raise NotReadable(f"its forward passes a {value.kind.__name__} on")


def _is_super(node: ast.expr, frame: Frame) -> bool:
    is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"
    return is_call and not node.args and not frame.has_local("super")  # type: ignore[attr-defined]


# --- Built-in functions that the reader answers itself ---


def _isinstance(calls: Calls, arguments: list[Any], keywords: dict[str, Any]) -> bool:
    value, kinds = arguments
    asked = tuple(kinds.items()) if isinstance(kinds, Collection) else (kinds,)
    if not all(isinstance(kind, type) for kind in asked):
        raise NotReadable("its forward asks for a type that is not known")
    if isinstance(value, Node):
        if value.op == "placeholder":
            return issubclass(Tensor, asked)
        raise NotReadable("its forward asks for the type of an intermediate value")
    if isinstance(value, Layer):
        return isinstance(value.module, asked)
    if isinstance(value, Collection):
        return issubclass(value.kind, asked)
    if isinstance(value, Outside):
        constant = calls.state.assumed.constant(type(value.value))
        calls.state.assumed.require(f"{value.expression}.__class__ is {constant}")
        return isinstance(value.value, asked)
    return isinstance(value, asked)


def _getattr(calls: Calls, arguments: list[Any], keywords: dict[str, Any]) -> Any:
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


def _hasattr(calls: Calls, arguments: list[Any], keywords: dict[str, Any]) -> bool:
    owner, name = arguments
    if isinstance(owner, Node) or not isinstance(name, str):
        raise NotReadable("its forward asks whether a tensor has an attribute")
    try:
        calls.state.attribute(owner, name)
    except Absent:
        return False
    return True


def _length(calls: Calls, arguments: list[Any], keywords: dict[str, Any]) -> Any:
    (value,) = arguments
    if isinstance(value, Node):
        return calls.emit("call_function", len, (value,))
    if isinstance(value, str):
        return len(value)
    return len(calls.iterate(value))


def _sum(calls: Calls, arguments: list[Any], keywords: dict[str, Any]) -> Any:
    values, *start = arguments
    total: Any = start[0] if start else keywords.get("start", 0)
    for value in calls.iterate(values):
        total = calls.operate(operator.add, total, value)
    return total


def _extreme(function: Callable[..., Any]) -> Callable[[Calls, list[Any], dict[str, Any]], Any]:
    def extreme(calls: Calls, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        values = arguments if len(arguments) > 1 else calls.iterate(arguments[0])
        if keywords or not all(is_known(value) for value in values):
            raise NotReadable("its forward takes decisions by the values or shapes of tensors")
        return function(map(plain, values))

    return extreme


def _range(calls: Calls, arguments: list[Any], keywords: dict[str, Any]) -> Any:
    if not all(type(value) is int for value in arguments):
        raise NotReadable("its forward loops as often as a tensor says")
    return Collection(tuple(range(*arguments)))


def _enumerate(calls: Calls, arguments: list[Any], keywords: dict[str, Any]) -> Any:
    start = keywords.get("start", arguments[1] if len(arguments) > 1 else 0)
    if type(start) is not int:
        raise NotReadable("its forward counts from what a tensor says")
    return Collection(tuple(Collection(pair) for pair in enumerate(calls.iterate(arguments[0]), start)))


def _zip(calls: Calls, arguments: list[Any], keywords: dict[str, Any]) -> Any:
    lists = [calls.iterate(value) for value in arguments]
    if keywords.get("strict") and len({len(values) for values in lists}) > 1:
        raise NotReadable("its forward zips collections of different lengths")
    return Collection(tuple(Collection(group) for group in zip(*lists, strict=False)))


def _reversed(calls: Calls, arguments: list[Any], keywords: dict[str, Any]) -> Any:
    return Collection(tuple(reversed(calls.iterate(arguments[0]))))


def _truths(function: Callable[..., bool]) -> Callable[[Calls, list[Any], dict[str, Any]], bool]:
    def truths(calls: Calls, arguments: list[Any], keywords: dict[str, Any]) -> bool:
        return function([calls.decide(value) for value in calls.iterate(arguments[0])])

    return truths


def _callable(calls: Calls, arguments: list[Any], keywords: dict[str, Any]) -> bool:
    (value,) = arguments
    if isinstance(value, (Layer, Method, Bound, FunctionType, BuiltinFunctionType, type)):
        return True
    if is_known(value):
        return False
    raise NotReadable("its forward asks whether an object can be called")


def _checked(calls: Calls, arguments: list[Any], keywords: dict[str, Any]) -> None:
    """`torch._assert`."""
    condition = arguments[0] if arguments else keywords["condition"]
    if not isinstance(condition, Node):
        if not calls.decide(condition):
            raise NotReadable("its forward always raises an error")
        return
    message = arguments[1] if len(arguments) > 1 else keywords.get("message", "")
    calls.emit("call_function", torch._assert, (condition, message))


def _has_torch_function(calls: Calls, arguments: list[Any], keywords: dict[str, Any]) -> bool:
    return False  # plans only run with plain tensors


def _of(kind: type) -> Callable[[Calls, list[Any], dict[str, Any]], Any]:
    """A class that makes a list, tuple, set or dictionary."""

    def make(calls: Calls, arguments: list[Any], keywords: dict[str, Any]) -> Any:
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


def _number(kind: type) -> Callable[[Calls, list[Any], dict[str, Any]], Any]:
    def convert(calls: Calls, arguments: list[Any], keywords: dict[str, Any]) -> Any:
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


def _type(calls: Calls, arguments: list[Any], keywords: dict[str, Any]) -> Any:
    (value,) = arguments
    if isinstance(value, Layer):
        return type(value.module)
    if is_setting(value):
        return type(value)
    raise NotReadable("its forward uses type")


_FUNCTIONS: dict[Any, Callable[[Calls, list[Any], dict[str, Any]], Any]] = {
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
    torch.overrides.has_torch_function: _has_torch_function,
    torch.overrides.has_torch_function_unary: _has_torch_function,
    torch.overrides.has_torch_function_variadic: _has_torch_function,
}
_CLASSES: dict[type, Callable[[Calls, list[Any], dict[str, Any]], Any]] = {
    **{kind: _of(kind) for kind in (list, tuple, set, dict)},
    **{kind: _number(kind) for kind in (int, float, bool, str)},
    range: _range,
    enumerate: _enumerate,
    zip: _zip,
    reversed: _reversed,
    type: _type,
}
