"""Writes a graph, with the assumptions it rests on, as one function of Python."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from keyword import iskeyword
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.nn.modules import module as torch_module

from ..graph.calls import Called
from ..layers.classes import classes_of
from ..reading.assumptions import Assumptions, dotted

_GLOBAL_HOOKS = (
    torch_module._global_forward_hooks,
    torch_module._global_forward_pre_hooks,
    torch_module._global_backward_hooks,
    torch_module._global_backward_pre_hooks,
)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_MISSING = "(KeyError, AttributeError, TypeError, IndexError, ValueError, RuntimeError)"
_SYMBOLS = {operator.add: "+", operator.sub: "-", operator.mul: "*", operator.truediv: "/"}


class Otherwise:
    """What the function answers if an assumption does not hold; nothing has happened yet."""


def function_of(graph: Graph, assumed: Assumptions, modules: Any) -> Callable[..., Any]:
    """The graph as `forward(self, *inputs)`, which answers `Otherwise` if an assumption does not hold."""
    return _Writer(graph, assumed, modules).function()


class _Writer:
    def __init__(self, graph: Graph, assumed: Assumptions, modules: Any) -> None:
        self._graph, self._assumed, self._modules = graph, assumed, modules
        self._last_uses = _last_uses(graph)
        self._inputs = [_name(node) for node in graph.nodes if node.op == "placeholder"]
        self._classes: dict[Any, None] = {}  # of the members of chains
        self._required: list[str] = []  # conditions on the members of chains with something in between

    def function(self) -> Callable[..., Any]:
        body = [line for node in self._graph.nodes for line in self._lines(node)]  # adds to what is assumed
        unchanged = self._unchanged_classes()
        checks = [*self._checks(), *([f"unchanged = {unchanged}"] if unchanged else [])]
        if self._required:
            checks.append(f"if not ({' and '.join(dict.fromkeys(self._required))}): return Otherwise")
        lines = [
            f"def forward({', '.join(['self', *self._inputs])}):",
            "    try:",
            *(f"        {line}" for line in checks),
            f"    except {_MISSING}:",
            "        return Otherwise",
            *(f"    {line}" for line in body),
        ]
        names = {**self._assumed.constants, "Otherwise": Otherwise}
        exec(compile("\n".join(lines), "<fusedtricks.fuse>", "exec"), names)
        return names["forward"]

    def _checks(self) -> Iterator[str]:
        tracing = self._assumed.constant(torch._C._get_tracing_state)
        tensor = self._assumed.constant(Tensor)
        conditions = [self._assumed.constant(hooks) for hooks in _GLOBAL_HOOKS]
        conditions += [f"type({name}) is not {tensor}" for name in self._inputs]
        yield f"if {' or '.join([*conditions, f'{tracing}() is not None'])}: return Otherwise"
        yield from self._assumed.lines("return Otherwise")

    # --- Nodes ---

    def _lines(self, node: Node) -> Iterator[str]:
        if node.op == "placeholder":
            return
        if node.op == "output":
            yield f"return {self._text(node.args[0])}"
            return
        called: Called | None = node.meta.get("chain")
        name, expression = _name(node), self._expression(node)
        if called is None or not called.members:
            yield f"{name} = {expression}"
        elif called.is_apart:
            self._required += self._are_plain(called.members)
            yield from self._at_once(name, expression, called, [])
        else:
            yield from self._at_once(name, expression, called, self._are_plain(called.members))
        if unused := self._last_uses.get(node):
            yield f"{' = '.join(unused)} = None"

    def _expression(self, node: Node) -> str:
        if node.op == "get_attr":
            return self._attribute(str(node.target))
        texts = [self._text(value) for value in node.args]
        given = ", ".join([*texts, *(self._keyword(name, value) for name, value in node.kwargs.items())])
        if node.op == "call_module":
            return f"{self._assumed.module(str(node.target))}({given})"
        if node.op == "call_method":
            return f"{dotted(texts[0], str(node.target))}({given.partition(', ')[2]})"
        if node.target is getattr and len(texts) == 2:
            return dotted(texts[0], str(node.args[1]))
        if node.target in _SYMBOLS and len(texts) == 2:
            return f"({texts[0]} {_SYMBOLS[node.target]} {texts[1]})"
        return f"{self._assumed.constant(node.target)}({given})"

    def _keyword(self, name: str, value: Any) -> str:
        is_name = name.isidentifier() and not iskeyword(name)
        return f"{name}={self._text(value)}" if is_name else f"**{{{name!r}: {self._text(value)}}}"

    def _attribute(self, path: str) -> str:
        if path in self._modules:
            return self._assumed.module(path)
        owner, _, name = path.rpartition(".")
        return dotted(self._assumed.module(owner), name)

    def _text(self, value: Any) -> str:
        if isinstance(value, Node):
            return _name(value)
        if isinstance(value, slice):
            return f"slice({', '.join(self._text(part) for part in (value.start, value.stop, value.step))})"
        if isinstance(value, dict):
            return f"{{{', '.join(f'{key!r}: {self._text(item)}' for key, item in value.items())}}}"
        if type(value) in (tuple, list) or type(value).__module__ == "torch.fx.immutable_collections":
            texts = "".join(f"{self._text(item)}, " for item in value)
            return f"({texts})" if isinstance(value, tuple) else f"[{texts}]"
        if value is None or type(value) in (bool, int, str):
            return repr(value)
        return self._assumed.constant(value)

    # --- Chains ---

    def _at_once(self, name: str, expression: str, called: Called, conditions: list[str]) -> Iterator[str]:
        """Lines for a chain that runs at once if the conditions hold, or its members one by one."""
        if called.at_once is None:
            yield f"{name} = {expression}"
            return
        function, given = called.at_once
        at_once = f"{self._assumed.constant(function)}({', '.join(map(self._text, given))})"
        if not conditions:
            yield f"{name} = {at_once}"
            yield f"if {name} is None: {name} = {expression}"
            return
        yield f"plain = {' and '.join(conditions)}"
        yield f"{name} = {at_once} if plain else None"
        yield f"if {name} is None: {name} = {expression.removesuffix(')')}, is_plain=plain)"

    def _are_plain(self, members: list[str]) -> list[str]:
        """Conditions: the members of a chain are what they were and have no hooks."""
        self._classes.update(dict.fromkeys(classes_of(type(self._modules[path]))[0] for path in members))
        conditions = ["unchanged"]
        for path in members:
            module = self._assumed.module(path)
            kinds = [self._assumed.constant(kind) for kind in classes_of(type(self._modules[path]))]
            hooks = " or ".join(f"d[{name!r}]" for name in _HOOKS)
            conditions.append(f"({' or '.join(f'{module}.__class__ is {kind}' for kind in reversed(kinds))})")
            conditions.append(f"not ('forward' in (d := {module}.__dict__) or {hooks})")
        return conditions

    def _unchanged_classes(self) -> str:
        """Whether the classes of all chains' members still have their forwards."""
        classes = [(self._assumed.constant(kind), self._assumed.constant(kind.forward)) for kind in self._classes]
        return " and ".join(f"{kind}.forward is {forward}" for kind, forward in classes)


def _name(node: Node) -> str:
    return f"v_{node.name}"


def _last_uses(graph: Graph) -> dict[Node, list[str]]:
    """The names of the values that are used for the last time by a node, after which they are freed."""
    seen: set[Node] = set()
    result: dict[Node, list[str]] = {}
    for node in reversed(graph.nodes):
        if node.op == "output":
            seen.update(node.all_input_nodes)
            continue
        unused = [source for source in node.all_input_nodes if source not in seen]
        if not node.users and node.op != "placeholder":
            unused.append(node)
        seen.update(unused)
        result[node] = [_name(source) for source in unused]
    return result
