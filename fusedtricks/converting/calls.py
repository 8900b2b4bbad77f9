"""Which module calls which, and with what: found by reading forwards, as `fuse` does. Nothing is run."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn
from torch.fx import Node

from ..fusing.graph.aliases import Modules, may_change
from ..fusing.graph.rewrite import Singles
from ..fusing.layers.walk import module_at, modules, named_modules
from ..fusing.planning import Session, has_own_forward


class _Call(NamedTuple):
    caller: nn.Module
    node: Node
    members: Modules  # of the caller, by name


class Calls:
    """The calls between the modules of one model."""

    def __init__(self, model: nn.Module) -> None:
        self._calls: dict[nn.Module, list[_Call]] = {}
        self._unread: set[nn.Module] = set()
        self._parents: dict[nn.Module, list[nn.Module]] = {model: []}
        session = Session(Singles())
        for module in modules(model):
            children = [child for child in module.__dict__["_modules"].values() if child is not None]
            for child in children:
                self._parents.setdefault(child, []).append(module)
            if children and type(module).forward is not nn.Module.forward:
                self._read(module, session)

    def _read(self, caller: nn.Module, session: Session) -> None:
        graphs = [session.graph(caller, mode) if has_own_forward(caller) else None for mode in (True, False)]
        if not all(graphs):
            self._unread.add(caller)
        members = dict(named_modules(caller, every_name=True))
        for graph in filter(None, graphs):
            for node in graph.nodes:
                if node.op == "call_module":
                    called = module_at(caller, str(node.target))
                    self._calls.setdefault(called, []).append(_Call(caller, node, members))

    def is_unshared(self, module: nn.Module) -> bool:
        return len(self._parents[module]) <= 1

    def takes_one(self, module: nn.Module) -> bool:
        """Whether a module is certainly called with one argument only."""
        calls = self._calls.get(module, [])
        one = all(len(call.node.args) + len(call.node.kwargs) == 1 for call in calls)
        return one and self._owners_call(module)

    def is_called_whole(self, sequential: nn.Module) -> bool:
        """Whether a container is called itself, and its members by nothing else, as far as can be seen."""
        children = sequential.__dict__["_modules"].values()
        callers = {call.caller for child in children for call in self._calls.get(child, [])}
        return callers <= {sequential} and (not self._parents[sequential] or self._owners_call(sequential))

    def _owners_call(self, module: nn.Module) -> bool:
        owners = self._owners(module)
        callers = {call.caller for call in self._calls.get(module, [])}
        return bool(owners) and not owners & self._unread and owners <= callers

    def _owners(self, module: nn.Module) -> set[nn.Module]:
        """The nearest modules around this one that have a forward."""
        owners: set[nn.Module] = set()
        for parent in self._parents[module]:
            owners |= self._owners(parent) if type(parent).forward is nn.Module.forward else {parent}
        return owners

    def is_changed_later(self, module: nn.Module) -> bool:
        """Whether a forward that can be read may write to a module's result, also after a container returned it."""
        seen: set[nn.Module] = set()

        def changed(module: nn.Module) -> bool:
            if module in seen:
                return False
            seen.add(module)
            return any(
                may_change(node, _after(node), members) or (node in _returned(node) and changed(caller))
                for caller, node, members in self._calls.get(module, [])
            )

        return changed(module)


def _after(node: Node) -> list[Node]:
    nodes = list(node.graph.nodes)
    return nodes[nodes.index(node) + 1 :]


def _returned(node: Node) -> list[Node]:
    return node.graph.output_node().all_input_nodes
