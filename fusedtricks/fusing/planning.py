"""Makes the plans of a block: traces its forward, inlines the modules that a chain enters or leaves, and rewrites.

A chain may cross a module's boundary, for example if a block ends in a BatchNorm and its caller adds and activates.
Such modules, and no others, are inlined into their caller's graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.fx import Graph, Node

from . import drop_paths, tracing
from .aliases import Modules
from .blocks import Guard, Plan, is_fused
from .chains import START, WHOLE, follows
from .kinds import ADDITION, IDENTITY, NORM, kind_of, operands
from .members import has_hooks, is_batch_norm, is_patched
from .rewrite import Singles, rewrite
from .tracing import Trace
from .watching import NotTraceable


def make_plans(block: nn.Module, singles: Singles) -> tuple[dict[bool, Plan], list[str]]:
    """The plans of a block for training and evaluation, and the reasons if one is missing. Plans may have no work.

    `block` has the user's own class.
    """
    plans: dict[bool, Plan] = {}
    reasons: list[str] = []
    for training in (True, False):
        with _mode(block, training):
            try:
                plans[training] = _make_plan(block, singles)
            except NotTraceable as error:
                reasons.append(str(error))
    return plans, list(dict.fromkeys(reasons))


def has_own_forward(module: nn.Module) -> bool:
    """Whether a module's forward is user code or nn.Sequential's, so that it may be traced."""
    kind = type(module)
    if isinstance(module, torch.jit.ScriptModule) or is_fused(module) or is_patched(module):
        return False
    if kind.forward is nn.Module.forward:
        return False
    is_library = kind.__module__.split(".")[0] in ("torch", "fusedtricks")
    is_layer = is_library or is_batch_norm(module) or drop_paths.of_module(module) is not None
    return kind is nn.Sequential or not is_layer


@contextmanager
def _mode(block: nn.Module, training: bool) -> Iterator[None]:
    """Context manager: sets `training` of all modules, without calling `train()`, which may do more."""
    before = [(module, module.training) for module in block.modules()]
    try:
        for module, _ in before:
            module.training = training
        yield
    finally:
        for module, value in before:
            module.training = value


def _make_plan(block: nn.Module, singles: Singles) -> Plan:
    try:
        modules = _members(block)
    except RecursionError:
        raise NotTraceable("its modules contain each other") from None
    traced, inlined = _Borders(modules, singles.dropout).trace(block)
    done = rewrite(traced.graph, modules, singles)
    guards = [
        Guard(
            name,
            modules[name],
            traced.reads.get(name, {}),
            is_part=name in inlined or name in done.passed,
            has_members=name == "" or name in inlined or name in traced.lists,
        )
        for name in dict.fromkeys(["", *inlined, *done.passed, *traced.lists, *traced.reads])
    ]
    try:
        return Plan(traced.graph, type(block).forward, guards, done)
    except SyntaxError as error:  # a member's name is a Python keyword
        raise NotTraceable(f"its graph cannot be written as code: {error}") from error


class _Borders:
    """Decides which modules to inline into a graph: those that a chain enters or leaves."""

    def __init__(self, modules: Modules, dropout: bool) -> None:
        self._modules, self._dropout = modules, dropout
        self._graphs: dict[nn.Module, Graph | None] = {}

    def trace(self, block: nn.Module) -> tuple[Trace, list[str]]:
        """The trace of a block, and the names of the inlined modules."""
        inlined: list[str] = []
        refused: set[str] = set()
        traced = tracing.trace(block)
        while name := self._next(traced.graph, refused):
            try:
                traced = tracing.trace(block, [*inlined, name])
                inlined.append(name)
            except NotTraceable:
                refused.add(name)
        return traced, inlined

    def _next(self, graph: Graph, refused: set[str]) -> str:
        for node in graph.nodes:
            if node.op != "call_module" or node.target in refused or not self._may_be_opened(node, self._modules):
                continue
            if self._end_continues(node) or self._beginning_continues(node):
                return str(node.target)
        return ""

    def _may_be_opened(self, node: Node, modules: Modules) -> bool:
        module = modules[str(node.target)] if node.op == "call_module" else None
        return module is not None and has_own_forward(module) and not has_hooks(module)

    def _end_continues(self, node: Node) -> bool:
        """Whether a module ends in a chain that its only user continues."""
        state = self._state(node, self._modules)
        return bool(state) and self._goes_on(node, state, self._modules)

    def _goes_on(self, node: Node, state: str, modules: Modules) -> bool:
        user = _only_user(node, modules)
        if user is None:
            return False
        kind = kind_of(user, modules)
        if kind == ADDITION and any(kind_of(other, modules) == NORM for other in operands(user) or ()):
            return False  # the addition belongs to the other operand's chain
        return self._takes(state, kind) or self._begins_with_more(user, state, modules)

    def _takes(self, state: str, kind: str) -> bool:
        """Whether a chain in that state may end with one more layer of that kind."""
        return follows(state, kind, self._dropout) in WHOLE

    def _beginning_continues(self, node: Node) -> bool:
        """Whether a module begins with layers that continue a chain of its caller."""
        sources = [source for source in node.all_input_nodes if len(source.users) == 1]
        states = [self._state(source, self._modules) for source in sources]
        return any(state and self._begins_with_more(node, state, self._modules) for state in states)

    def _state(self, node: Node, modules: Modules) -> str:
        """The state of the chain that computes a value, also if it is at the end of a module; "" for no chain."""
        kind = kind_of(node, modules)
        if kind == IDENTITY:
            return self._state(node.all_input_nodes[0], modules)
        if kind:
            sources = operands(node) or node.all_input_nodes[:1]
            before = [self._state(source, modules) for source in sources if len(source.users) == 1]
            states = [follows(state, kind, self._dropout) for state in before if state]
            return next(filter(None, states), "") or follows(START, kind, self._dropout)
        if not self._may_be_opened(node, modules):
            return ""
        inside = modules[str(node.target)]
        graph = self._graph(inside)
        result = graph.output_node().args[0] if graph else None
        if not isinstance(result, Node) or len(result.users) != 1:
            return ""
        return self._state(result, _members(inside))

    def _begins_with_more(self, node: Node, state: str, modules: Modules) -> bool:
        """Whether a module begins with a layer that can end the chain."""
        if not self._may_be_opened(node, modules):
            return False
        inside = modules[str(node.target)]
        graph = self._graph(inside)
        members = _members(inside)
        for value in graph.nodes if graph else ():
            first = _only_user(value, members) if value.op == "placeholder" else None
            if first is None:
                continue
            if self._takes(state, kind_of(first, members)) or self._begins_with_more(first, state, members):
                return True
        return False

    def _graph(self, module: nn.Module) -> Graph | None:
        if module not in self._graphs:
            try:
                self._graphs[module] = tracing.trace(module).graph
            except NotTraceable:
                self._graphs[module] = None
        return self._graphs[module]


def _only_user(node: Node, modules: Modules) -> Node | None:
    """The only user of a value, skipping identities; None if there are several."""
    if len(node.users) != 1:
        return None
    user = next(iter(node.users))
    return _only_user(user, modules) if kind_of(user, modules) == IDENTITY else user


def _members(module: nn.Module) -> Modules:
    return dict(module.named_modules(remove_duplicate=False))
