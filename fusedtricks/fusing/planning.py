"""Makes the plans of a block: reads its forward, inlines the modules that a chain enters or leaves, and rewrites.

A chain may cross a module's boundary, for example if a block ends in a BatchNorm and its caller adds and activates.
Such modules are inlined into their caller's graph, and no others but those that are given lists of tensors.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.fx import Graph, Node

from .graph.aliases import Modules
from .graph.chains import START, WHOLE, follows
from .graph.kinds import ADDITION, IDENTITY, NORM, kind_of, operands
from .graph.rewrite import Singles, rewrite
from .install.blocks import Plan, Plans, is_fused
from .install.code import function_of
from .layers import drop_paths
from .layers.classes import stock_class
from .layers.members import has_hooks, is_batch_norm, is_patched
from .layers.walk import named_modules
from .reading.assumptions import Assumptions
from .reading.errors import NotReadable
from .reading.source import Sources
from .reading.statements import read


class Session:
    """What the plans of one model share: the sources of functions, and the graphs of modules on their own."""

    def __init__(self, singles: Singles) -> None:
        self.singles, self.sources = singles, Sources()
        self._graphs: dict[tuple[nn.Module, bool], Graph | None] = {}
        self.begins: dict[tuple[nn.Module, str, bool], bool] = {}  # see _Borders._begins_with_more

    def graph(self, module: nn.Module, training: bool) -> Graph | None:
        """The graph of a module's forward, to look at; None if it cannot be read."""
        key = (module, training)
        if key not in self._graphs:
            try:
                self._graphs[key] = read(module, training, (), self.sources)[0]
            except Exception:  # it will be said when the module itself is planned
                self._graphs[key] = None
        return self._graphs[key]


def make_plans(block: nn.Module, session: Session) -> tuple[dict[bool, Plan], dict[bool, list[str]], list[str]]:
    """The plans of a block for training and evaluation, which may have no work.

    Returns:
        The plans, the names of the modules that each contains, and the reasons if a plan is missing.
    """
    plans: dict[bool, Plan] = {}
    parts: dict[bool, list[str]] = {}
    reasons: list[str] = []
    for training in (True, False):
        try:
            plans[training], parts[training] = _make_plan(block, training, session)
        except NotReadable as error:
            reasons.append(f"{error} [{error.where}]" if error.where else str(error))
        except Exception as error:  # a forward, class or value of a kind that nobody has thought of
            reasons.append(f"its forward cannot be read: {type(error).__name__}: {error}")
    return plans, parts, list(dict.fromkeys(reasons))


def new_plans(singles: Singles) -> Plans:
    return Plans(_plans_of, singles)


def _plans_of(block: nn.Module, singles: Singles) -> dict[bool, Plan]:
    return make_plans(block, Session(singles))[0]


def has_own_forward(module: nn.Module) -> bool:
    """Whether a module's forward may be read."""
    return is_block(module) and not is_fused(module) and not why_not_read(module)


def is_block(module: nn.Module) -> bool:
    """Whether a module's forward is user code or nn.Sequential's."""
    kind = stock_class(type(module))
    if kind is nn.Sequential or isinstance(module, (torch.jit.ScriptModule, torch.fx.GraphModule)):
        return True
    if kind.forward is nn.Module.forward or kind.__module__.split(".")[0] in ("torch", "fusedtricks"):
        return False
    return not is_batch_norm(module) and drop_paths.of_module(module) is None


def why_not_read(module: nn.Module) -> str:
    """Why a block's forward is not read, else ""."""
    if isinstance(module, torch.jit.ScriptModule):
        return "torch.jit has compiled it: fuse the model before that"
    if isinstance(module, torch.fx.GraphModule):
        return "torch.fx has traced it: fuse the model before that"
    return "its forward was replaced on the instance" if is_patched(module) else ""


def _make_plan(block: nn.Module, training: bool, session: Session) -> tuple[Plan, list[str]]:
    try:
        modules = _members(block)
    except RecursionError:
        raise NotReadable("its modules contain each other") from None
    found = _Borders(modules, training, session).read(block)
    done = rewrite(found.graph, modules, session.singles)
    for name in done.passed:
        found.assumed.has_no_hooks(name)
    found.assumed.note_layers({*done.members} - {*done.passed})
    function = function_of(found.graph, found.assumed, modules)
    return Plan(found.graph, stock_class(type(block)).forward, function, done), [*found.assumed.followed, *done.passed]


class _Read(NamedTuple):
    graph: Graph
    assumed: Assumptions


class _Borders:
    """Decides which modules to inline into a graph: those that a chain enters or leaves."""

    def __init__(self, modules: Modules, training: bool, session: Session) -> None:
        self._modules, self._training, self._session = modules, training, session
        self._dropout = session.singles.dropout

    def read(self, block: nn.Module) -> _Read:
        """The graph of a block, with modules inlined."""
        inlined: list[str] = []
        refused: set[str] = set()
        found = read(block, self._training, (), self._session.sources)
        while names := self._next(found[0], refused):
            for tried in (names, *([[name] for name in names] if len(names) > 1 else [])):
                try:
                    found = read(block, self._training, [*inlined, *tried], self._session.sources)
                    inlined += tried
                    break
                except NotReadable:
                    if len(tried) == 1:
                        refused.update(tried)
        return _Read(*found)

    def _next(self, graph: Graph, refused: set[str]) -> list[str]:
        """The modules that a chain enters or leaves: all at once, but for those that end in an operand of an addition.

        Which of the two operands continues into the addition depends on what is inlined by then.
        """
        found = [node for node in graph.nodes if self._is_entered_or_left(node, refused)]
        at_once = [
            node for node in found if kind_of(_only_user(node, self._modules) or node, self._modules) != ADDITION
        ]
        return list(dict.fromkeys(str(node.target) for node in at_once or found[:1]))

    def _is_entered_or_left(self, node: Node, refused: set[str]) -> bool:
        if node.op != "call_module" or node.target in refused or not self._may_be_opened(node, self._modules):
            return False
        return self._end_continues(node) or self._beginning_continues(node)

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
        key = (inside, state, self._training)
        if key not in self._session.begins:
            self._session.begins[key] = False  # if modules contain each other
            self._session.begins[key] = self._module_begins_with_more(inside, state)
        return self._session.begins[key]

    def _module_begins_with_more(self, inside: nn.Module, state: str) -> bool:
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
        return self._session.graph(module, self._training)


def _only_user(node: Node, modules: Modules) -> Node | None:
    """The only user of a value, skipping identities; None if there are several."""
    if len(node.users) != 1:
        return None
    user = next(iter(node.users))
    return _only_user(user, modules) if kind_of(user, modules) == IDENTITY else user


def _members(module: nn.Module) -> Modules:
    return dict(named_modules(module, every_name=True))
