"""Evaluates the calls of a forward: follows the user's functions, and makes nodes of everything else."""

from __future__ import annotations

import ast
import inspect
import operator
from collections.abc import Collection as Names
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, Node

from ..layers.classes import is_layer, stock_class
from ..layers.libraries import is_library, library_of
from ..layers.members import has_hooks
from .assumptions import is_of_the_program
from .builtins import built_in
from .errors import NotReadable
from .expressions import Expressions
from .frame import Frame
from .state import State, children_of, on_class
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
    wrapped,
)

_SEES_ITS_CALLER = ("warnings", "logging", "inspect", "sys", "gc", "traceback", "threading", "torch._dynamo")
_CHANGES_OF_LISTS = {("append", 1), ("extend", 1), ("insert", 2), ("pop", 0), ("pop", 1), ("reverse", 0)}


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
        self.changes = 0  # of collections of the forward's own

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
        if isinstance(value, Collection) and not value.role:
            if value.kind is dict and all(type(key) in (str, int) for key in value.values):
                return {key: self.argument(item) for key, item in value.values.items()}
            if value.kind in (list, tuple):
                return value.kind(self.argument(item) for item in value.values)
        return _refuse(f"passes {what(value)} on")

    def is_tensor(self, node: Node) -> bool:
        """Whether a node certainly does not give None."""
        if node.op in ("placeholder", "get_attr"):
            return True
        of_tensors = any(self.is_tensor(source) for source in node.all_input_nodes[:1])
        if node.op == "call_module":
            kind = type(self.state.module_at(str(node.target)))
            return is_layer(kind) and (of_tensors or kind is not nn.Identity)
        if node.op == "call_method":
            return (
                of_tensors and node.target not in ("backward", "retain_grad") and not str(node.target).startswith("_")
            )
        target: Any = node.target
        if target is getattr:
            return of_tensors and str(node.args[1]) in ("shape", "dtype", "device", "data", "ndim", "T", "mT", "H")
        if target is operator.getitem and not all(self._is_one_tensor(source) for source in node.all_input_nodes[:1]):
            return False
        known = library_of(target) in ("_operator", "math", "builtins", "torch", "torch.nn.functional", "torch._C._nn")
        return known and of_tensors and target is not torch._assert

    def _is_one_tensor(self, node: Node) -> bool:
        """Whether a node gives a tensor, and not several of which some may be None."""
        if node.op == "call_module":
            kind = type(self.state.module_at(str(node.target)))
            return self.is_tensor(node) and not issubclass(kind, (nn.MultiheadAttention, nn.RNNBase))
        return node.op in ("placeholder", "get_attr")

    # --- Calls ---

    def _Call(self, node: ast.Call, frame: Frame) -> Any:
        if isinstance(node.func, ast.Name) and node.func.id == "super" and not frame.has_local("super"):
            raise NotReadable("its forward passes super() on")
        if isinstance(node.func, ast.Attribute) and _is_super(node.func.value, frame):
            owner, layer = self._class_and_self(frame)
            callee: Any = self.state.next_in_line(owner, layer, node.func.attr)
        elif isinstance(node.func, ast.Attribute):
            of = self.evaluate(node.func.value, frame)
            callee = Bound(of, node.func.attr) if isinstance(of, Node) else self.attribute(of, node.func.attr)
        else:
            callee = self.evaluate(node.func, frame)
        if any(isinstance(argument, ast.GeneratorExp) for argument in node.args):
            return self._call_with_generator(callee, node, frame)
        arguments = self._elements(node.args, frame)
        return self.call(callee, arguments, self._keywords(node, frame))

    def _call_with_generator(self, callee: Any, node: ast.Call, frame: Frame) -> Any:
        """A call that takes all that a generator gives, at once; `any` and `all` as much as they need."""
        generator = node.args[0]
        if len(node.args) > 1 or node.keywords or not isinstance(generator, ast.GeneratorExp):
            raise NotReadable(f"its forward makes a generator (in {frame.name})")
        if callee is any or callee is all:
            return callee(self.decide(self.evaluate(generator.elt, inner)) for inner in self.loops(generator, frame))
        is_join = isinstance(callee, Bound) and type(callee.owner) is str and callee.name == "join"
        if not is_join and not any(callee is taker for taker in (sum, min, max, list, tuple, set)):
            raise NotReadable(f"its forward makes a generator (in {frame.name})")
        values = [self.evaluate(generator.elt, inner) for inner in self.loops(generator, frame)]
        return self.call(callee, [Collection(values)], {})

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
        if isinstance(callee, FunctionType) and not is_library(library_of(callee)):
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
        if layer.path not in self._inline and not self._has_to_follow(layer, arguments, keywords):
            refuse_shared(arguments, keywords)
            self.state.user_code_ran |= not is_layer(kind) or bool(module._modules)
            self.state.set_since |= self.state.effects.of_module(module)
            return self.emit("call_module", layer.path, arguments, keywords)
        stock = stock_class(kind)
        function = function_of(stock, "forward")
        self.state.assumed.followed[layer.path] = None
        self.state.assumed.has_no_hooks(layer.path)
        self.state.assumed.is_of_class(layer.path, stock)
        return self.call_function(function, [Layer(module, layer.path), *arguments], keywords)

    def _has_to_follow(self, layer: Layer, arguments: list[Any], keywords: dict[str, Any]) -> bool:
        """Whether a module is given lists, as the layers of a densely connected block are, and can be read.

        Its own plan, if it had one, would be for tensors alone.
        """
        if not any(isinstance(value, Collection) for value in (*arguments, *keywords.values())):
            return False
        kind = stock_class(type(layer.module))
        return type(layer.module) is kind and not is_layer(kind) and not has_hooks(layer.module)

    def _call_method(self, method: Method, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        owner, name = method.owner, method.function.__name__
        if isinstance(owner, Layer) and is_library(library_of(method.function)):
            if name in ("children", "named_children") and method.function is getattr(nn.Module, name):
                return Collection(tuple(children_of(self.state, owner, name == "named_children")), role=ITERATOR)
            if keywords or arguments:
                pass
            elif isinstance(owner.module, nn.ModuleDict) and method.function is getattr(nn.ModuleDict, name, None):
                return self._items_of(owner.module, self.state.members(owner), name)
            elif isinstance(owner.module, nn.ParameterDict) and name in ("items", "keys", "values"):
                return self._items_of(owner.module, self.parameters(owner), name)
            if name not in ("forward", "_conv_forward", "_check_input_dim"):
                raise NotReadable(f"its forward calls {name} of a module")
        return self.call_function(method.function, [owner, *arguments], keywords)

    def _items_of(self, module: nn.Module, values: dict[str, Any], name: str) -> Any:
        found: dict[str, list[Any]] = {"items": [Collection(pair) for pair in values.items()], "keys": list(values)}
        found["values"] = list(values.values())
        if name not in found:
            raise NotReadable(f"its forward calls {name} of a {type(module).__name__}")
        return Collection(tuple(found[name]), role=VIEW)

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
        self.state.assumed.has_defaults(function)
        if is_setting(value) or isinstance(value, (FunctionType, type)):
            return value
        if isinstance(value, tuple) and all(is_setting(item) for item in value):
            return wrapped(value)
        raise NotReadable(f"the default of {name} in {function.__name__} is not a simple value")

    def _follow_or_keep(self, function: FunctionType, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        """Follows a user's function; one that cannot be followed becomes a node and runs as it is."""
        last, changes, set_since = next(iter(reversed(self.graph.nodes)), None), self.changes, set(self.state.set_since)
        try:
            return self.call_function(function, arguments, keywords)
        except NotReadable:
            if self.changes != changes:  # it has begun to change collections, which cannot be undone
                raise
            self.state.user_code_ran = True
            self.state.set_since = set_since | self.state.effects.of_function(function)
            for node in reversed(self.graph.nodes):
                if node is last:
                    break
                self.graph.erase_node(node)
            for value in (*arguments, *keywords.values()):
                if isinstance(value, Layer):
                    self.state.set_since |= self.state.effects.of_module(value.module)
            refuse_shared(arguments, keywords)
            return self.emit("call_function", function, arguments, keywords)

    # --- Built-in functions and libraries ---

    def _call_bound(self, bound: Bound, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        owner, name = bound.owner, bound.name
        if isinstance(owner, Node):
            return self.emit("call_method", name, (owner, *arguments), keywords)
        if isinstance(owner, Collection):
            return self._call_collection(owner, name, arguments, keywords)
        if all(is_known(value) for value in (*arguments, *keywords.values())):
            named = {name: plain(value) for name, value in keywords.items()}
            return wrapped(attempt(getattr(owner, name), *map(plain, arguments), **named))
        raise NotReadable(f"its forward calls {name} of a {type(owner).__name__}")

    def _call_collection(self, owner: Collection, name: str, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        values, first = owner.values, arguments[0] if arguments else None
        if owner.role or keywords:
            raise NotReadable(f"its forward calls {name} of {what(owner)}")
        if owner.kind is dict and name in ("items", "keys", "values") and not arguments:
            found = tuple(Collection(i) if name == "items" else i for i in getattr(values, name)())
            return Collection(found, role=VIEW, sources=snapshots(owner))
        if owner.kind is dict and name == "get" and is_known(first) and len(arguments) in (1, 2):
            return values.get(plain(first), arguments[1] if len(arguments) > 1 else None)
        if name in ("index", "count") and is_known(owner) and is_known(first) and len(arguments) == 1:
            return attempt(getattr(plain(owner), name), plain(first))
        if name == "copy" and not arguments:
            return Collection(values.copy())
        if not owner.own:
            raise NotReadable(f"its forward changes a {owner.kind.__name__} that it did not make, by {name}")
        self.changes += 1
        if owner.kind is list and (name, len(arguments)) in _CHANGES_OF_LISTS:
            if name == "extend":
                return values.extend(self.iterate(first))
            place = (plain(first),) if is_known(first) and name in ("insert", "pop") else ()
            return attempt(getattr(values, name), *place, *arguments[len(place) :])
        if owner.kind is dict and name == "update" and isinstance(first, Collection) and first.kind is dict:
            return values.update(first.values)
        if owner.kind is dict and name in ("pop", "setdefault") and arguments and is_known(first):
            return attempt(getattr(values, name), plain(first), *arguments[1:])
        raise NotReadable(f"its forward calls {name} of a {owner.kind.__name__}")

    def _call_class(self, kind: type, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        if handler := built_in(kind):
            return handler(self, arguments, keywords)
        is_named_tuple = issubclass(kind, tuple) and hasattr(kind, "_fields")
        is_known = kind.__module__ != "builtins" and is_library(kind.__module__)
        if not (is_known or is_named_tuple) or issubclass(kind, nn.Module):
            raise NotReadable(f"its forward creates a {kind.__name__}")
        refuse_shared(arguments, keywords)
        return self.emit("call_function", kind, arguments, keywords)

    def _call_library(self, function: Any, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        if isinstance(function, Outside) or not is_of_the_program(function):
            raise NotReadable(f"its forward calls {what(function)}")
        name, library = getattr(function, "__name__", type(function).__name__), library_of(function)
        if handler := built_in(function):
            return handler(self, arguments, keywords)
        if library == "builtins" and name not in ("print", "abs", "divmod", "round", "pow", "hash", "repr"):
            raise NotReadable(f"its forward calls {name}")
        if library.startswith(_SEES_ITS_CALLER):
            raise NotReadable(f"its forward calls {name}")
        values = [*arguments, *keywords.values()]
        if library == "math" and all(is_known(value) for value in values):
            named = {key: plain(value) for key, value in keywords.items()}
            return wrapped(attempt(function, *map(plain, arguments), **named))
        if not library.startswith("torch"):
            refuse_shared(arguments, keywords)
        return self.emit("call_function", function, arguments, keywords)


def _refuse(what: str) -> Any:
    raise NotReadable(f"its forward {what}")


def refuse_shared(arguments: Any, keywords: dict[str, Any]) -> None:
    """Raises if user code would be given a list that the forward goes on to use: a node gets a copy."""
    for value in (*arguments, *keywords.values()):
        if isinstance(value, Collection):
            if value.kind is not tuple:
                raise NotReadable(f"its forward passes {what(value)} on")
            refuse_shared(value.values, {})


def attempt(function: Any, *arguments: Any, **keywords: Any) -> Any:
    """A call of Python's own with known values, made now; what raises an error is left to the forward."""
    try:
        return function(*arguments, **keywords)
    except Exception as error:
        raise NotReadable(f"its forward raises {type(error).__name__}") from None


def function_of(kind: Any, name: str) -> FunctionType:
    """An ordinary method of a class."""
    found = on_class(kind, name)
    if not isinstance(found, FunctionType):
        raise NotReadable(f"{kind.__name__}.{name} is not an ordinary method")
    return found


def _is_super(node: ast.expr, frame: Frame) -> bool:
    is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"
    return is_call and not node.args and not frame.has_local("super")  # type: ignore[attr-defined]
