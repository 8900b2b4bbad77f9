"""Rewrites a graph: replaces chains by single calls, and activations and dropout by ours."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from torch.fx import Graph, Node

from ..layers import activations
from .aliases import Modules, is_only_read
from .calls import call_of_chain, call_of_single, concatenated, replace_in_chain
from .chain import Chain
from .chains import Left, find_chains
from .kinds import ACTIVATION, ADDITION, IDENTITY, NORM, activation_of
from .legality import owns_source


class Singles(NamedTuple):
    """Which standalone layers are also replaced, one for one."""

    activations: bool = True
    dropout: bool = True  # everything that draws random numbers, also in chains


@dataclass
class Rewritten:
    """What was done to a graph."""

    chains: list[str]  # members of each chain, for example "bn2 + residual → relu"
    members: list[str]  # names of all modules in chains
    passed: list[str]  # names of the identities among them
    left: list[tuple[str, str]]  # BatchNorm or chain, reason
    singles: list[str] = field(default_factory=list)
    only_read: list[str] = field(default_factory=list)  # activation modules whose result is never changed
    changed: list[str] = field(default_factory=list)  # activation modules whose result may be changed


def rewrite(graph: Graph, modules: Modules, singles: Singles) -> Rewritten:
    """Rewrites a graph in place.

    Args:
        graph: from `reading` or Dynamo.
        modules: the graph's modules by name; the root's name is "".
        singles: which standalone layers to replace.
    """
    found = find_chains(graph, modules, singles.dropout)
    alone = [chain for chain in found.chains if len(chain.steps) == 1]
    chains = [chain for chain in found.chains if len(chain.steps) > 1]
    steps = [step for chain in found.chains for step in chain.steps if step.node.op == "call_module"]
    result = Rewritten(
        [_describe(chain) for chain in chains],
        [str(step.node.target) for step in steps],
        [str(step.node.target) for step in steps if step.kind == IDENTITY],
        [(_what_is_left(left), left.reason) for left in found.left],
        [_describe(chain) for chain in alone],
    )
    only_read = _activations_only_read(graph, modules, found.chains, result) | _concatenations_only_read(graph, modules)
    owners = [owns_source(chain, modules) for chain in found.chains]  # before the graph changes
    for chain, owns in zip(found.chains, owners, strict=True):
        _put(graph, call_of_chain(graph, chain, modules, owns), chain.end)
        for node in reversed(chain.nodes[:-1]):
            graph.erase_node(node)
    for node in list(graph.nodes):
        if new := call_of_single(graph, node, singles.activations, singles.dropout, node in only_read):
            result.singles.append(_name(node))
            _put(graph, new, node)
    return result


def _activations_only_read(graph: Graph, modules: Modules, chains: list[Chain], result: Rewritten) -> set[Node]:
    """The standalone activations that keep their result where it is never changed; modules are recorded in `result`."""
    only_read: set[Node] = set()
    taken = {node for chain in chains for node in chain.nodes}
    for node in graph.nodes:
        if node in taken or not activations.keeps_result_unlike_stock(*activation_of(node, modules)):
            continue
        if safe := is_only_read(node, modules):
            only_read.add(node)
        if node.op == "call_module":
            (result.only_read if safe else result.changed).append(str(node.target))
    return only_read


def _concatenations_only_read(graph: Graph, modules: Modules) -> set[Node]:
    """The concatenations of tensors that are never changed, for ours may be joined of them again.

    What the caller does later to the graph's inputs is not known; if it changes them, the backward raises an error.
    """
    is_read: dict[Node, bool] = {}
    found: set[Node] = set()
    for node in graph.nodes:
        if (tensors := concatenated(node)) is None:
            continue
        for tensor in tensors:
            if tensor not in is_read:
                is_read[tensor] = tensor.op != "get_attr" and is_only_read(tensor, modules)
        if all(is_read[tensor] for tensor in tensors):
            found.add(node)
    return found


def _what_is_left(left: Left) -> str:
    is_norm = left.chain.steps[0].kind == NORM
    return _name(left.chain.head) if is_norm else _describe(left.chain)


def _describe(chain: Chain) -> str:
    """For example "bn2 + residual → relu → dropout"."""
    text = ""
    for step in chain.steps:
        if step.kind == ADDITION:
            text += " + residual"
        elif step.kind != IDENTITY:
            text += f"{' → ' if text else ''}{_name_in_chain(step.kind, step.node)}"
    return text


def _name_in_chain(kind: str, node: Node) -> str:
    found = activations.of_node(node) if kind == ACTIVATION else None
    return found[0].name if found else _name(node)


def _name(node: Node) -> str:
    return (
        str(node.target) if node.op in ("call_module", "call_method") else getattr(node.target, "__name__", node.name)
    )


def _put(graph: Graph, new: Node, old: Node) -> None:
    new.meta.update(old.meta)
    old.replace_all_uses_with(new)
    for user in new.users:
        replace_in_chain(user, old, new)
    graph.erase_node(old)
