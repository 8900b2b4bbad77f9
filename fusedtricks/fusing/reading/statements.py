"""Reads a forward as a graph: follows its syntax tree statement by statement, and runs none of it."""

from __future__ import annotations

import ast
import inspect
import operator
import os
from collections.abc import Callable
from collections.abc import Collection as Names
from types import FunctionType
from typing import Any

from torch import nn
from torch.fx import Graph, Node

from ..graph.aliases import INPUT
from ..layers.classes import stock_class
from ..running.statements import expect, unpack
from .assumptions import Assumptions
from .calls import Calls, function_of
from .errors import NotReadable
from .expressions import BINARY, IN_PLACE
from .frame import Frame
from .source import Sources
from .state import State
from .values import Collection, Layer, Outside, is_known, is_setting, only_looks, plain

_REFUSED = {
    ast.With: "has a with statement",
    ast.AsyncWith: "has a with statement",
    ast.Try: "catches exceptions",
    ast.While: "has a while loop",
    ast.Global: "sets a global variable",
    ast.Nonlocal: "sets a variable of an enclosing function",
    ast.Import: "imports",
    ast.ImportFrom: "imports",
    ast.FunctionDef: "defines a function",
    ast.ClassDef: "defines a class",
}


def _refused(statement: ast.stmt, frame: Frame) -> None:
    kind = type(statement)
    raise NotReadable(f"its forward {_REFUSED.get(kind, f'has a {kind.__name__}')} (in {frame.name})")


class _Return(Exception):
    def __init__(self, value: Any) -> None:
        self.value = value


class _Break(Exception):
    pass


class _Continue(Exception):
    pass


class Reader(Calls):
    """Reads the functions of one forward into one graph."""

    def __init__(self, state: State, graph: Graph, inline: Names[str], sources: Sources) -> None:
        super().__init__(state, graph, inline)
        self._sources = sources

    def run(self, function: FunctionType, frame: Frame) -> Any:
        try:
            self._block(self._sources.tree(function).body, frame)
        except _Return as result:
            return result.value
        return None

    def _block(self, statements: list[ast.stmt], frame: Frame) -> None:
        for statement in statements:
            kind = type(statement)
            method: Callable[[Any, Frame], None] = getattr(self, f"_do_{kind.__name__}", _refused)
            try:
                method(statement, frame)
            except NotReadable as error:
                file = os.path.basename(frame.function.__code__.co_filename)
                error.where = error.where or f"{file}:{statement.lineno}"
                raise

    # --- Simple statements ---

    def _do_Pass(self, statement: ast.Pass, frame: Frame) -> None:
        pass

    def _do_Expr(self, statement: ast.Expr, frame: Frame) -> None:
        self.evaluate(statement.value, frame)

    def _do_Return(self, statement: ast.Return, frame: Frame) -> None:
        raise _Return(self.evaluate(statement.value, frame) if statement.value else None)

    def _do_Break(self, statement: ast.Break, frame: Frame) -> None:
        raise _Break

    def _do_Continue(self, statement: ast.Continue, frame: Frame) -> None:
        raise _Continue

    def _do_Delete(self, statement: ast.Delete, frame: Frame) -> None:
        for target in statement.targets:
            if not isinstance(target, ast.Name):
                raise NotReadable(f"its forward deletes an attribute or item (in {frame.name})")
            frame.delete(target.id)

    # --- Assignments ---

    def _do_Assign(self, statement: ast.Assign, frame: Frame) -> None:
        value = self.evaluate(statement.value, frame)
        for target in statement.targets:
            self.assign(target, value, frame)

    def _do_AnnAssign(self, statement: ast.AnnAssign, frame: Frame) -> None:
        if statement.value is not None:
            self.assign(statement.target, self.evaluate(statement.value, frame), frame)

    def assign(self, target: ast.expr, value: Any, frame: Frame) -> None:
        if isinstance(target, ast.Name):
            frame.set(target.id, value)
        elif isinstance(target, (ast.Tuple, ast.List)):
            self._unpack(target.elts, value, frame)
        elif isinstance(target, ast.Subscript):
            owner = self.evaluate(target.value, frame)
            self._set_item(owner, self.evaluate(target.slice, frame), value, frame)
        elif isinstance(target, ast.Attribute):
            owner = self.evaluate(target.value, frame)
            if not isinstance(owner, Node):
                raise NotReadable(f"its forward sets an attribute (in {frame.name})")
            self.emit("call_function", setattr, (owner, target.attr, value))
        else:
            raise NotReadable(f"its forward unpacks the rest of a collection (in {frame.name})")

    def _unpack(self, targets: list[ast.expr], value: Any, frame: Frame) -> None:
        starred = [i for i, target in enumerate(targets) if isinstance(target, ast.Starred)]
        if isinstance(value, Node):
            if starred:
                raise NotReadable(f"its forward unpacks the rest of a tensor (in {frame.name})")
            values = self.emit("call_function", unpack, (value, len(targets)))
            items: list[Any] = [self.emit("call_function", operator.getitem, (values, i)) for i in range(len(targets))]
        else:
            items = self.iterate(value)
        if starred and len(items) >= len(targets) - 1:
            first, after = starred[0], len(targets) - starred[0] - 1
            rest = items[first : len(items) - after]
            items = [*items[:first], Collection(rest), *items[len(items) - after :]]
        if len(items) != len(targets):
            raise NotReadable(f"its forward unpacks {len(items)} values into {len(targets)} (in {frame.name})")
        for target, item in zip(targets, items, strict=True):
            self.assign(target.value if isinstance(target, ast.Starred) else target, item, frame)

    def _set_item(self, owner: Any, index: Any, value: Any, frame: Frame) -> None:
        if isinstance(owner, Node):
            self.emit("call_function", operator.setitem, (owner, index, value))
        elif isinstance(owner, Collection) and owner.is_own_and_mutable() and is_known(index):
            try:
                owner.values[plain(index)] = value
                self.changes += 1
            except (IndexError, TypeError):
                raise NotReadable(f"its forward sets an item that does not exist (in {frame.name})") from None
        else:
            raise NotReadable(f"its forward sets an item (in {frame.name})")

    def _do_AugAssign(self, statement: ast.AugAssign, frame: Frame) -> None:
        target = statement.target
        if isinstance(target, ast.Name):
            left = self.evaluate(ast.Name(target.id, ast.Load()), frame)
            frame.set(target.id, self._in_place(statement.op, left, self.evaluate(statement.value, frame), frame))
        elif isinstance(target, ast.Subscript):
            owner, index = self.evaluate(target.value, frame), self.evaluate(target.slice, frame)
            left = self.item(owner, index)
            right = self.evaluate(statement.value, frame)
            self._set_item(owner, index, self._in_place(statement.op, left, right, frame), frame)
        else:
            raise NotReadable(f"its forward sets an attribute (in {frame.name})")

    def _in_place(self, operation: ast.operator, left: Any, right: Any, frame: Frame) -> Any:
        function = IN_PLACE[type(operation)]
        if isinstance(left, Collection) and left.kind is list:
            if not left.own or function is not operator.iadd:
                raise NotReadable(f"its forward changes a list (in {frame.name})")
            left.values.extend(self.iterate(right))
            self.changes += 1
            return left
        if isinstance(left, Collection) and left.kind in (set, dict):
            raise NotReadable(f"its forward changes a {left.kind.__name__} (in {frame.name})")
        if isinstance(left, Outside):
            raise NotReadable(f"its forward changes an object (in {frame.name})")
        if is_setting(left) or (isinstance(left, Collection) and left.kind is tuple):  # cannot be changed, is replaced
            function = BINARY[type(operation)]
        return self.operate(function, left, right)

    # --- Decisions ---

    def _do_If(self, statement: ast.If, frame: Frame) -> None:
        test = self.evaluate(statement.test, frame)
        if isinstance(test, Node) and self._is_check(statement) and self._nothing_happened():
            self.emit("call_function", expect, (self.emit("call_function", operator.not_, (test,)),))
            return
        self._block(statement.body if self.decide(test) else statement.orelse, frame)

    def _is_check(self, statement: ast.If) -> bool:
        return len(statement.body) == 1 and isinstance(statement.body[0], ast.Raise) and not statement.orelse

    def _nothing_happened(self) -> bool:
        """Whether the graph has only looked at its inputs, so that the user's forward can still run instead."""
        return all(only_looks(node) or node.target is expect for node in self.graph.nodes)

    def _do_Assert(self, statement: ast.Assert, frame: Frame) -> None:
        test = self.evaluate(statement.test, frame)
        if isinstance(test, Node) and self._nothing_happened():
            self.emit("call_function", expect, (test,))
        elif not self.decide(test):
            raise NotReadable("its forward always raises an error")

    def _do_Raise(self, statement: ast.Raise, frame: Frame) -> None:
        raise NotReadable("its forward always raises an error")

    def _do_For(self, statement: ast.For, frame: Frame) -> None:
        for value in self.loop_over(self.evaluate(statement.iter, frame), frame):
            self.assign(statement.target, value, frame)
            try:
                self._block(statement.body, frame)
            except _Break:
                return
            except _Continue:
                continue
        self._block(statement.orelse, frame)


def read(module: nn.Module, training: bool, inline: Names[str], sources: Sources) -> tuple[Graph, Assumptions]:
    """Reads a module's forward; the modules it calls become nodes, except those in `inline`.

    Arguments with a simple default get that value in the graph and are not graph inputs.

    Args:
        module: the module.
        training: the mode that all its modules are assumed to be in.
        inline: names of the modules to follow.
        sources: the syntax trees.

    Raises:
        NotReadable: the forward is not a plain sequence of operations.
    """
    graph = Graph()
    state = State(module, training, graph, sources.effects)
    reader = Reader(state, graph, inline, sources)
    kind = stock_class(type(module))
    function = function_of(kind, "forward")
    state.assumed.has_attribute(kind, "forward")
    state.assumed.has_defaults(function)
    given = [graph.placeholder(p.name) if p.default is p.empty else p.default for p in inputs_of(function)]
    for node in graph.nodes:
        node.meta[INPUT] = True
    result = reader.call_function(function, [Layer(module, ""), *given], {})
    graph.output(_returned(reader, result))
    return graph, state.assumed


def inputs_of(function: Any) -> list[inspect.Parameter]:
    """The arguments that a forward is read with, in order: those without a default are the graph's inputs.

    *args, **kwargs and keyword-only arguments are left out. For a wrapper that a decorator made, which may look at how
    many arguments it is given, these are the arguments without a default of the function that it wraps.
    """
    is_wrapper = hasattr(function, "__wrapped__")
    found = []
    for parameter in list(inspect.signature(function).parameters.values())[1:]:
        has_default = parameter.default is not parameter.empty
        if parameter.kind is parameter.KEYWORD_ONLY and not has_default:
            raise NotReadable(f"its forward needs the keyword argument {parameter.name}")
        if has_default and not is_setting(parameter.default):
            raise NotReadable(f"the default of {parameter.name} is not a simple value")
        is_one = parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        if is_one and not (is_wrapper and has_default):
            found.append(parameter)
    return found


def _returned(reader: Reader, value: Any) -> Any:
    if isinstance(value, Collection) and not value.own and value.kind is not tuple:
        raise NotReadable("its forward returns a collection that it did not make")
    return reader.argument(value)
