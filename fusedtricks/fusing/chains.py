"""Finds chains in a graph: BatchNorm, an addition, an activation, one value each the next one's alone.

Serves the graphs of `torch.fx`, where layers are modules, and those of Dynamo, where they are functions.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Graph, Node

from . import activations
from .activations import Activation
from .aliases import Modules, is_only_read, is_used_once, may_change, may_share_memory
from .run_time import is_batch_norm

_ADD_FUNCTIONS = (operator.add, operator.iadd, torch.add)
_ADD_METHODS = ("add", "add_")


@dataclass
class Chain:
    """Nodes that become one: `norm`, perhaps an addition, perhaps an activation, with identities in between."""

    norm: Node
    nodes: list[Node] = field(default_factory=list)  # after the norm, in order
    addition: Node | None = None  # among the nodes
    side: int = 0  # which of its operands is the residual
    activation: Activation | Node | None = None  # a node where it is a module

    @property
    def end(self) -> Node:
        return self.nodes[-1]

    @property
    def residual(self) -> Node | None:
        """What is added at present: rewriting another chain may have replaced it."""
        added = operands(self.addition) if self.addition else None
        return added[self.side] if added else None

    @property
    def how_it_adds(self) -> tuple[bool, bool]:
        """`run_time.Addition`, as a graph may hold it."""
        return self.side == 0, self.addition is not None and is_in_place_addition(self.addition)


@dataclass
class Left:
    """A BatchNorm that stays as it is, and why."""

    norm: Node
    reason: str


def is_norm(node: Node, modules: Modules) -> bool:
    """Whether a node is a BatchNorm that may begin a chain."""
    if node.op == "call_module":
        return is_batch_norm(modules[str(node.target)]) and len(node.args) == 1 and not node.kwargs
    return node.op == "call_function" and node.target is F.batch_norm


def is_identity(node: Node, modules: Modules) -> bool:
    return node.op == "call_module" and type(modules[str(node.target)]) is nn.Identity


def operands(node: Node) -> tuple[Node, Node] | None:
    """What an addition of two tensors adds; the first is written to where it is in place."""
    is_add = node.op == "call_function" and node.target in _ADD_FUNCTIONS
    is_add = is_add or (node.op == "call_method" and node.target in _ADD_METHODS)
    arguments = (*node.args, *(node.kwargs[name] for name in ("input", "other") if name in node.kwargs))
    if not is_add or len(arguments) != 2 or node.kwargs.get("alpha", 1) != 1 or "out" in node.kwargs:
        return None
    a, b = arguments
    return (a, b) if isinstance(a, Node) and isinstance(b, Node) else None


def is_in_place_addition(node: Node) -> bool:
    return node.target in (operator.iadd, "add_")


def activation_at(node: Node, modules: Modules) -> Activation | Node | None:
    """The activation that a node applies: the node itself where that is a module, which may change."""
    if node.op == "call_module":
        return node if activations.of_module(modules[str(node.target)]) else None
    found = activations.of_node(node)
    return found[0] if found else None


def find_chains(graph: Graph, modules: Modules) -> tuple[list[Chain], list[Left]]:
    """All chains of a graph, in its order, and the BatchNorms that are in none."""
    chains: list[Chain] = []
    left: list[Left] = []
    taken: set[Node] = set()
    for norm in graph.nodes:
        if not is_norm(norm, modules):
            continue
        chain, reason = _grow(Chain(norm), modules, taken)
        _leave_out_activation(chain, modules)
        reason = reason or _obstacle(chain, modules)
        if reason:
            left.append(Left(norm, reason))
        else:
            chains.append(chain)
            taken.update(chain.nodes)
    return chains, left


def _grow(chain: Chain, modules: Modules, taken: set[Node]) -> tuple[Chain, str]:
    """The chain with what follows its norm; or why there is none."""
    here, waiting = chain.norm, []  # identities, which belong to the chain if something follows them
    reason = "nothing that can be fused follows it"
    while chain.activation is None:
        if len(here.users) != 1:
            reason = "its result is used more than once" if here.users else "its result is not used"
            break
        user = next(iter(here.users))
        if user in taken:
            reason = "the addition after it belongs to another BatchNorm"
            break
        if is_identity(user, modules):
            waiting.append(user)
        elif (added := operands(user)) and chain.addition is None and added[0] is not added[1]:
            if is_in_place_addition(user) and added[0] is not here and not is_used_once(added[0], modules):
                reason = "it is added in place to another tensor"
                break
            chain.addition, chain.side = user, int(added[0] is here)
            chain.nodes += [*waiting, user]
            waiting = []
        elif activation := activation_at(user, modules):
            chain.activation = activation
            chain.nodes += [*waiting, user]
        else:
            break
        here = user
    return chain, "" if chain.nodes else reason


def _leave_out_activation(chain: Chain, modules: Modules) -> None:
    """Where what the operator would keep for backward after an addition, and stock does not, may be changed."""
    if chain.addition is None or chain.residual is None or chain.activation is None:
        return
    activation = chain.activation
    if isinstance(activation, Node):
        activation = activations.of_module(modules[str(activation.target)]) or Activation("identity", {})
    if activation.name in activations.KEEPS_RESULT:
        is_safe = is_only_read(chain.end, modules)
    elif activation.name in activations.KEEPS_INPUT:
        is_safe = not may_change(chain.residual, _after(chain.end), modules)
    else:
        return
    if not is_safe:
        chain.activation, chain.nodes = None, chain.nodes[: chain.nodes.index(chain.addition) + 1]


def _after(node: Node) -> Iterator[Node]:
    while node.next.op != "output" and node.next is not node:
        node = node.next
        yield node


def _obstacle(chain: Chain, modules: Modules) -> str:
    """Why the chain cannot be computed where it ends, or nothing: something in between changes what it needs."""
    between = list(_between(chain.norm, chain.end, set(chain.nodes)))
    source = chain.norm.all_input_nodes[0]
    if may_change(source, between, modules):
        return "its input may be changed in place before the chain ends"
    if any(_switches_mode(node) for node in between):
        return "gradients or autocast are switched before the chain ends"
    state = _state_nodes(chain.norm)
    shared = {node for value in state for node in may_share_memory(value, modules)} | set(state)
    if any(_uses_state(chain.norm, node, shared, modules) for node in between):
        return "its running statistics are used again before the chain ends"
    if chain.addition and chain.residual:
        after = list(_between(chain.addition, chain.end, set(chain.nodes)))
        if may_change(chain.residual, after, modules):
            return "what is added may be changed in place before the chain ends"
    return ""


def _between(first: Node, last: Node, but: set[Node]) -> Iterator[Node]:
    """The nodes after `first` and before `last`; none where they are the same."""
    node = first
    while node is not last:
        if node is not first and node not in but:
            yield node
        node = node.next


def _switches_mode(node: Node) -> bool:
    """As in Dynamo's graphs, where `with torch.no_grad()` is two nodes."""
    name = getattr(node.target, "__name__", "")
    return node.op == "call_function" and name.startswith(("_enter_", "_exit_", "_set_grad", "set_grad", "_saved"))


def _state_nodes(norm: Node) -> list[Node]:
    """The nodes that are parameters or buffers of a BatchNorm."""
    if norm.op == "call_function":
        return [*norm.all_input_nodes[1:]]
    prefix = f"{norm.target}."
    return [node for node in norm.graph.nodes if node.op == "get_attr" and str(node.target).startswith(prefix)]


def _uses_state(norm: Node, node: Node, shared: set[Node], modules: Modules) -> bool:
    """Whether a node reads or writes a BatchNorm's state: what shares memory with it, or a module that holds it."""
    if node in shared or any(source in shared for source in node.all_input_nodes):
        return node.op not in ("get_attr", "placeholder")
    if node.op != "call_module":
        return False
    owners = [norm] if norm.op == "call_module" else [n for n in _state_nodes(norm) if n.op == "get_attr"]
    names = {str(owner.target) if owner is norm else str(owner.target).rpartition(".")[0] for owner in owners}
    return any(module is modules[name] for name in names for module in modules[str(node.target)].modules())
