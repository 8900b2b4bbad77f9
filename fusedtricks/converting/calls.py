"""Which module calls which, and with what: found by reading forwards, as `fuse` does. Nothing is run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import NamedTuple

from torch import nn
from torch.fx import Node

from ..fusing.graph.aliases import Modules, may_change, may_share_memory
from ..fusing.graph.rewrite import Singles
from ..fusing.layers.walk import children_of, module_at, modules, named_modules
from ..fusing.planning import Session, has_own_forward
from .mentions import mentioned


class _Call(NamedTuple):
    caller: nn.Module
    node: Node
    members: Modules  # of the caller, by name


class Calls:
    """The calls between the modules of one model."""

    def __init__(self, model: nn.Module) -> None:
        self._calls: dict[nn.Module, list[_Call]] = {}
        self._unread: set[nn.Module] = set()
        self._parents: dict[nn.Module, list[tuple[str, nn.Module]]] = {model: []}
        session = Session(Singles())
        for module in modules(model):
            children = children_of(module)
            for name, child in children.items():
                self._parents.setdefault(child, []).append((name, module))
            if children and _has_forward(module):
                self._read(module, session)

    def _read(self, caller: nn.Module, session: Session) -> None:
        graphs = [session.graph(caller, mode) if has_own_forward(caller) else None for mode in (True, False)]
        try:
            members = dict(named_modules(caller, every_name=True))
        except RecursionError:  # modules that contain each other
            graphs, members = [None], {}
        if not all(graphs):
            self._unread.add(caller)
        for graph in filter(None, graphs):
            for node in graph.nodes:
                if node.op == "call_module":
                    called = module_at(caller, str(node.target))
                    self._calls.setdefault(called, []).append(_Call(caller, node, members))

    @cached_property
    def _mentioned(self) -> frozenset[str] | None:
        return mentioned({type(module) for module in self._parents})

    def _are_mentioned(self, names: set[str]) -> bool:
        return bool(names) and (self._mentioned is None or not names.isdisjoint(self._mentioned))

    def is_unshared(self, module: nn.Module) -> bool:
        return len(self._parents[module]) <= 1

    def takes_one(self, module: nn.Module) -> bool:
        """Whether a module is certainly called with one argument only."""
        calls = self._calls.get(module, [])
        one = all(len(call.node.args) + len(call.node.kwargs) == 1 for call in calls)
        return one and self._owners_call(module) and not self._are_mentioned(self._path(module, _has_forward))

    def is_called_whole(self, sequential: nn.Module) -> bool:
        """Whether a container is called itself, and its members by nothing else, as far as can be seen."""
        callers = {call.caller for child in children_of(sequential).values() for call in self._calls.get(child, [])}
        if not callers <= {sequential} or (self._parents[sequential] and not self._owners_call(sequential)):
            return False
        if any(self._is_unread_code(module) for module in self._around(sequential, lambda module: False)):
            return False
        return not self._are_mentioned(self._path(sequential, _has_code))

    def _owners_call(self, module: nn.Module) -> bool:
        owners = self._owners(module)
        callers = {call.caller for call in self._calls.get(module, [])}
        return bool(owners) and not owners & self._unread and owners <= callers

    def _is_unread_code(self, module: nn.Module) -> bool:
        return module in self._unread and type(module).__module__.split(".")[0] not in ("torch", "fusedtricks")

    def _owners(self, module: nn.Module) -> set[nn.Module]:
        """The nearest modules around this one that have a forward."""
        return {owner for owner in self._around(module, _has_forward) if _has_forward(owner)}

    def _path(self, module: nn.Module, ends: Callable[[nn.Module], bool]) -> set[str]:
        """The names from the nearest modules around this one of which `ends` holds."""
        inner = [module, *(parent for parent in self._around(module, ends) if not ends(parent))]
        return {name for one in inner for name, _ in self._parents[one]}

    def _around(self, module: nn.Module, ends: Callable[[nn.Module], bool]) -> Iterator[nn.Module]:
        """The modules around this one, from inside, up to those of which `ends` holds."""
        seen, todo = {module}, [module]
        while todo:
            for _, parent in self._parents[todo.pop()]:
                if parent not in seen:
                    seen.add(parent)
                    yield parent
                    if not ends(parent):
                        todo.append(parent)

    def is_changed_later(self, module: nn.Module) -> bool:
        """Whether a forward may write to a module's result, also after a container returned it."""
        seen: set[nn.Module] = set()

        def changed(module: nn.Module) -> bool:
            if module in seen:
                return False
            seen.add(module)
            if any(self._is_unread_code(owner) for owner in self._owners(module)):
                return True
            return any(
                may_change(node, _after(node), members) or (_may_be_returned(node, members) and changed(caller))
                for caller, node, members in self._calls.get(module, [])
            )

        return changed(module)


def _has_forward(module: nn.Module) -> bool:
    return type(module).forward is not nn.Module.forward


def _has_code(module: nn.Module) -> bool:
    """Whether a module has a forward that is more than to run its members one after another."""
    return _has_forward(module) and type(module).forward is not nn.Sequential.forward


def _after(node: Node) -> list[Node]:
    nodes = list(node.graph.nodes)
    return nodes[nodes.index(node) + 1 :]


def _may_be_returned(node: Node, members: Modules) -> bool:
    shared = may_share_memory(node, members, is_new=True)
    return any(user.op == "output" for other in shared for user in other.users)
