"""Evaluates the expressions of a forward: what is known now, and a node of the graph for everything else."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import nn
from torch.fx import Node

from ..running.statements import text
from .effects import ITEMS
from .errors import Absent, NotReadable
from .frame import Frame
from .state import State
from .values import VIEW, Bound, Collection, Layer, Method, Outside, is_known, is_setting, plain, snapshots, wrapped

_OPERATORS: dict[type, str] = {
    **{ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "truediv", ast.FloorDiv: "floordiv"},
    **{ast.Mod: "mod", ast.Pow: "pow", ast.MatMult: "matmul", ast.LShift: "lshift", ast.RShift: "rshift"},
    **{ast.BitAnd: "and", ast.BitOr: "or", ast.BitXor: "xor"},
}
BINARY: dict[type, Callable[..., Any]] = {kind: getattr(operator, f"__{name}__") for kind, name in _OPERATORS.items()}
IN_PLACE: dict[type, Callable[..., Any]] = {kind: getattr(operator, f"i{name}") for kind, name in _OPERATORS.items()}
_UNARY: dict[type, Callable[..., Any]] = {ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Invert: operator.invert}
_COMPARE: dict[type, Callable[..., Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


class Expressions:
    """Evaluates expressions; `calls.Calls` adds the calls."""

    state: State

    def evaluate(self, node: ast.expr, frame: Frame) -> Any:
        method = getattr(self, f"_{type(node).__name__}", None)
        if method is None:
            raise NotReadable(f"its forward has a {_PLAIN.get(type(node), type(node).__name__)} (in {frame.name})")
        return method(node, frame)

    # --- Names, attributes, items ---

    def _Constant(self, node: ast.Constant, frame: Frame) -> Any:
        return node.value

    def _Name(self, node: ast.Name, frame: Frame) -> Any:
        if frame.has_local(node.id):
            return frame.get(node.id)
        return self.state.variable(frame.function, node.id)

    def _NamedExpr(self, node: ast.NamedExpr, frame: Frame) -> Any:
        value = self.evaluate(node.value, frame)
        frame.of_function().set(node.target.id, value)
        return value

    def _Attribute(self, node: ast.Attribute, frame: Frame) -> Any:
        return self.attribute(self.evaluate(node.value, frame), node.attr)

    def attribute(self, owner: Any, name: str) -> Any:
        if isinstance(owner, Node):
            return self.emit("call_function", getattr, (owner, name))
        try:
            found = self.state.attribute(owner, name)
        except Absent:
            raise NotReadable(f"its forward reads {name}, which does not exist") from None
        if isinstance(found, property):
            return self.call_function(found.fget, [owner], {})
        return found

    def call_function(self, function: Any, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        raise NotImplementedError

    def emit(self, op: str, target: Any, arguments: Any, keywords: Any = None) -> Node:
        raise NotImplementedError

    def _Subscript(self, node: ast.Subscript, frame: Frame) -> Any:
        owner, index = self.evaluate(node.value, frame), self.evaluate(node.slice, frame)
        return self.item(owner, index)

    def item(self, owner: Any, index: Any) -> Any:
        if isinstance(owner, Node) or isinstance(index, Node):
            return self.emit("call_function", operator.getitem, (owner, index))
        if isinstance(owner, Layer):
            return self._member(owner, index)
        self._refuse_if_changed(owner)
        if is_known(index) and (is_setting(owner) or (isinstance(owner, Collection) and not owner.role)):
            key = plain(index)
            try:
                found = (owner.values if isinstance(owner, Collection) else owner)[key]
            except (KeyError, IndexError, TypeError) as error:
                raise NotReadable(f"its forward takes an item that does not exist: {error}") from None
            if isinstance(owner, Collection):
                return Collection(found) if isinstance(key, slice) else found
            return wrapped(found)
        raise NotReadable("its forward takes an item of an object")

    def _refuse_if_changed(self, value: Any) -> None:
        if isinstance(value, Collection) and not value.own and not value.role:
            self.state.refuse_if_set(ITEMS)

    def _member(self, layer: Layer, index: Any) -> Any:
        members = self.state.members(layer)
        kind: Any = type(layer.module)
        bases: tuple[Any, ...] = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
        base = next((b for b in bases if isinstance(layer.module, b)), None)
        if base is None or kind.__getitem__ is not base.__getitem__:
            return self._parameter(layer, index)
        if isinstance(index, slice) and is_known(index) and base is nn.ModuleList:
            return Collection(tuple(list(members.values())[plain(index)]), own=False, role=VIEW)
        try:
            return members[index] if base is nn.ModuleDict else list(members.values())[operator.index(index)]
        except (KeyError, IndexError, TypeError):
            raise NotReadable(f"its forward takes an item of {layer.path or 'itself'}") from None

    def _parameter(self, layer: Layer, index: Any) -> Any:
        values = self.parameters(layer)
        try:
            return values[index] if isinstance(values, dict) else list(values)[index]
        except (KeyError, IndexError, TypeError):
            raise NotReadable(f"its forward takes an item {index!r} of {layer.path}") from None

    def parameters(self, layer: Layer) -> Any:
        """The items of a ParameterList or ParameterDict."""
        kind = type(layer.module)
        assumed, path = self.state.assumed, layer.path
        if kind is nn.ParameterList:
            assumed.require(f"len({assumed.module(path)}) == {len(layer.module)}")  # type: ignore[arg-type]
            return [self.state.attribute(layer, str(i)) for i in range(len(layer.module))]  # type: ignore[arg-type]
        if kind is nn.ParameterDict:
            keys = list(layer.module._keys)  # type: ignore[arg-type]
            assumed.require(f"[*{assumed.module(path)}._keys] == {keys!r}")
            return {key: self.state.attribute(layer, key) for key in keys}
        raise NotReadable(f"its forward takes an item of a {kind.__name__}")

    def _Slice(self, node: ast.Slice, frame: Frame) -> Any:
        parts = [self.evaluate(part, frame) if part else None for part in (node.lower, node.upper, node.step)]
        return slice(*parts)

    # --- Collections ---

    def _Tuple(self, node: ast.Tuple, frame: Frame) -> Any:
        return Collection(tuple(self._elements(node.elts, frame)))

    def _List(self, node: ast.List, frame: Frame) -> Any:
        return Collection(self._elements(node.elts, frame))

    def _Set(self, node: ast.Set, frame: Frame) -> Any:
        values = self._elements(node.elts, frame)
        if not all(is_setting(value) for value in values):
            raise NotReadable("its forward makes a set of tensors")
        return Collection(set(values))

    def _elements(self, nodes: list[ast.expr], frame: Frame) -> list[Any]:
        values: list[Any] = []
        for node in nodes:
            if isinstance(node, ast.Starred):
                values += self.iterate(self.evaluate(node.value, frame))
            else:
                values.append(self.evaluate(node, frame))
        return values

    def _Dict(self, node: ast.Dict, frame: Frame) -> Any:
        result: dict[Any, Any] = {}
        for key, value in zip(node.keys, node.values, strict=True):
            if key is None:
                inner = self.evaluate(value, frame)
                if not isinstance(inner, Collection) or inner.kind is not dict:
                    raise NotReadable("its forward unpacks an object")
                result |= inner.values
            else:
                name = self.evaluate(key, frame)
                if not is_known(name):
                    raise NotReadable("its forward makes a dictionary whose keys are not known")
                result[plain(name)] = self.evaluate(value, frame)
        return Collection(result)

    def _ListComp(self, node: ast.ListComp, frame: Frame) -> Any:
        return Collection([self.evaluate(node.elt, inner) for inner in self.loops(node, frame)])

    def loops(self, node: ast.ListComp | ast.DictComp | ast.GeneratorExp, frame: Frame) -> Iterator[Frame]:
        """The scope of a comprehension, once for each of its elements."""
        return self._loops(node.generators, frame)

    def _DictComp(self, node: ast.DictComp, frame: Frame) -> Any:
        result = {}
        for inner in self.loops(node, frame):
            key = self.evaluate(node.key, inner)
            if not is_known(key):
                raise NotReadable("its forward makes a dictionary whose keys are not known")
            result[plain(key)] = self.evaluate(node.value, inner)
        return Collection(result)

    def _loops(self, generators: list[ast.comprehension], frame: Frame) -> Iterator[Frame]:
        if not generators:
            yield frame
            return
        first, *rest = generators
        for value in self.loop_over(self.evaluate(first.iter, frame), frame):
            inner = frame.inner()
            self.assign(first.target, value, inner)
            if all(self.decide(self.evaluate(test, inner)) for test in first.ifs):
                yield from self._loops(rest, inner)

    def assign(self, target: ast.expr, value: Any, frame: Frame) -> None:
        raise NotImplementedError

    def loop_over(self, value: Any, frame: Frame) -> Iterator[Any]:
        """The values of a loop whose body must not change what it loops over."""
        looked_at = snapshots(value)
        for item in self.iterate(value):
            yield item
            if not all(snapshot.holds() for snapshot in looked_at):
                raise NotReadable(f"its forward changes what it loops over (in {frame.name})")

    def iterate(self, value: Any) -> list[Any]:
        """The values that a loop over `value` gives."""
        if isinstance(value, Collection):
            self._refuse_if_changed(value)
            return value.items()
        if isinstance(value, Layer):
            return self._iterate_module(value)
        if isinstance(value, str):
            return list(value)
        if isinstance(value, torch.Size):
            return list(value)
        what = "a tensor" if isinstance(value, Node) else "an object"
        raise NotReadable(f"its forward loops over {what}")

    def length_of(self, layer: Layer) -> int:
        """`len` of a container of modules or parameters."""
        kind: Any = type(layer.module)
        for base in (nn.Sequential, nn.ModuleList, nn.ModuleDict):
            if isinstance(layer.module, base) and kind.__len__ is base.__len__:
                return len(self.state.members(layer))
        return len(self.parameters(layer))

    def _iterate_module(self, layer: Layer) -> list[Any]:
        kind: Any = type(layer.module)
        for base in (nn.Sequential, nn.ModuleList):
            if isinstance(layer.module, base) and kind.__iter__ is base.__iter__:
                return list(self.state.members(layer).values())
        if isinstance(layer.module, nn.ModuleDict) and kind.__iter__ is nn.ModuleDict.__iter__:
            return list(self.state.members(layer))
        found = self.parameters(layer)
        return list(found)

    # --- Operators ---

    def _BinOp(self, node: ast.BinOp, frame: Frame) -> Any:
        left, right = self.evaluate(node.left, frame), self.evaluate(node.right, frame)
        return self.operate(BINARY[type(node.op)], left, right)

    def operate(self, function: Callable[..., Any], *values: Any) -> Any:
        if any(isinstance(value, Node) for value in values):
            return self.emit("call_function", function, values)
        if function in (operator.add, operator.mul) and isinstance(values[0], Collection) and not values[0].role:
            a, b = values  # not as known values, which would copy the collections in them
            if function is operator.mul and type(b) is int and a.kind in (list, tuple):
                return Collection(a.values * b)
            if isinstance(b, Collection) and not b.role and a.kind is b.kind and a.kind in (list, tuple):
                return Collection(a.values + b.values)
        if all(is_known(value) for value in values):
            try:
                return wrapped(function(*map(plain, values)))
            except Exception as error:
                raise NotReadable(f"its forward raises {type(error).__name__}") from None
        raise NotReadable("its forward computes with objects")

    def _UnaryOp(self, node: ast.UnaryOp, frame: Frame) -> Any:
        value = self.evaluate(node.operand, frame)
        if isinstance(node.op, ast.Not):
            if isinstance(value, Node):
                return self.emit("call_function", operator.not_, (value,))
            return not self.decide(value)
        return self.operate(_UNARY[type(node.op)], value)

    def _BoolOp(self, node: ast.BoolOp, frame: Frame) -> Any:
        stops_at = isinstance(node.op, ast.Or)
        value: Any = None
        for i, part in enumerate(node.values):
            value = self.evaluate(part, frame)
            if i + 1 < len(node.values) and self.decide(value) is stops_at:
                break
        return value

    def _IfExp(self, node: ast.IfExp, frame: Frame) -> Any:
        return self.evaluate(node.body if self.decide(self.evaluate(node.test, frame)) else node.orelse, frame)

    def decide(self, value: Any) -> bool:
        """The truth of a value, which must be known."""
        if isinstance(value, Node):
            what = "the values or shapes of tensors"
            if value.op == "call_function" and not value.all_input_nodes:
                what = f"what {getattr(value.target, '__name__', value.target)} answers"
            raise NotReadable(f"its forward takes decisions by {what}")
        if isinstance(value, Collection) and not value.role:
            return bool(value.values)
        if is_setting(value):
            return bool(value)
        if isinstance(value, Layer):
            kind: Any = type(value.module)
            if hasattr(kind, "__bool__"):
                raise NotReadable(f"{kind.__name__} has its own truth")
            if not hasattr(kind, "__len__"):
                return True
            return bool(self.length_of(value))
        if isinstance(value, (Method, Bound, FunctionType, type, ModuleType)):
            return True
        raise NotReadable("its forward takes decisions by an object")

    def _Compare(self, node: ast.Compare, frame: Frame) -> Any:
        left = self.evaluate(node.left, frame)
        for i, (kind, part) in enumerate(zip(node.ops, node.comparators, strict=True)):
            right = self.evaluate(part, frame)
            result = self._compared(kind, left, right)
            is_last = i + 1 == len(node.ops)
            if is_last or not self.decide(result):
                return result
            left = right
        raise AssertionError

    def _compared(self, kind: ast.cmpop, left: Any, right: Any) -> Any:
        if isinstance(kind, (ast.Is, ast.IsNot)):
            return self._is(left, right) is isinstance(kind, ast.Is)
        if isinstance(kind, (ast.In, ast.NotIn)):
            return self._contains(right, left) is isinstance(kind, ast.In)
        return self.operate(_COMPARE[type(kind)], left, right)

    def _is(self, a: Any, b: Any) -> bool:
        if isinstance(a, Node) and isinstance(b, Node):
            if a is b:
                return True
            raise NotReadable("its forward asks whether two tensors are the same")
        if isinstance(b, Node):
            a, b = b, a
        if isinstance(a, Node):
            if b is None and self.is_tensor(a):
                return False
            raise NotReadable("its forward asks whether a result is None")
        if isinstance(a, Layer) and isinstance(b, Layer):
            return self.state.same(a, b)
        if isinstance(a, Outside) and isinstance(b, Outside):
            self.state.assumed.require(f"({a.expression} is {b.expression}) is {a.value is b.value}")
            return a.value is b.value
        if isinstance(a, Outside) or isinstance(b, Outside):
            outside, other = (a, b) if isinstance(a, Outside) else (b, a)
            if other is not None:
                raise NotReadable("its forward compares objects")
            self.state.assumed.require(f"{outside.expression} is not None")
            return False
        if a is None or b is None or isinstance(a, bool) or isinstance(b, bool):
            return a is b
        if isinstance(a, (type, FunctionType)) or isinstance(b, (type, FunctionType)):
            return a is b
        raise NotReadable("its forward compares the identity of values")

    def is_tensor(self, node: Node) -> bool:
        raise NotImplementedError

    def _contains(self, collection: Any, value: Any) -> bool:
        if isinstance(collection, Layer) and isinstance(collection.module, nn.ModuleDict) and is_setting(value):
            kind: Any = type(collection.module)
            if kind.__contains__ is nn.ModuleDict.__contains__:
                return value in self.state.members(collection)
        is_collection = isinstance(collection, Collection) and not collection.role and is_known(value)
        if is_collection and collection.kind is dict:
            return plain(value) in collection.values
        if is_collection and is_known(collection):
            return plain(value) in plain(collection)
        if isinstance(collection, str) and isinstance(value, str):
            return value in collection
        raise NotReadable("its forward asks whether an object is in a collection")

    def _JoinedStr(self, node: ast.JoinedStr, frame: Frame) -> Any:
        parts: list[Any] = []
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                pattern = self._JoinedStr(part.format_spec, frame) if part.format_spec else ""  # type: ignore[arg-type]
                parts.append((self.evaluate(part.value, frame), part.conversion, pattern))
            else:
                parts.append((self.evaluate(part, frame), -1, ""))
        if all(is_known(value) and isinstance(pattern, str) for value, _, pattern in parts):
            return text([(plain(value), conversion, pattern) for value, conversion, pattern in parts])
        return self.emit("call_function", text, (Collection([Collection(part) for part in parts]),))


_PLAIN = {
    ast.Lambda: "lambda",
    ast.GeneratorExp: "generator",
    ast.Await: "await",
    ast.Yield: "yield",
    ast.YieldFrom: "yield",
    ast.SetComp: "set comprehension",
    ast.Starred: "starred expression",
}
