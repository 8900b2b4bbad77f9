"""Rewrites a graph: chains become one call, activations and dropout become ours."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch.fx import Graph, Node

from . import activations, run_time
from .aliases import Modules, is_in_place, is_only_read
from .chains import Chain, find_chains, is_identity

_BATCH_NORM = inspect.signature(F.batch_norm)
_DROPOUT = inspect.signature(F.dropout)


class Singles(NamedTuple):
    """Which layers that are in no chain are replaced too, one for one."""

    activations: bool = True
    dropout: bool = True


@dataclass
class Rewritten:
    """What was done to a graph."""

    chains: list[str]  # members, such as "bn2 + residual → relu"
    members: list[str]  # names of the modules in them
    passed: list[str]  # those of them that are identities
    left: list[tuple[str, str]]  # BatchNorm, reason
    singles: list[str] = field(default_factory=list)
    only_read: list[str] = field(default_factory=list)  # activation modules whose result nobody changes
    changed: list[str] = field(default_factory=list)  # those of which that is not certain


def rewrite(graph: Graph, modules: Modules, singles: Singles) -> Rewritten:
    """Rewrites a graph in place.

    Args:
        graph: of `torch.fx` or of Dynamo.
        modules: the graph's modules by name, the root by "".
        singles: functions that are in no chain and replaced all the same.
    """
    chains, left = find_chains(graph, modules)
    nodes = [node for chain in chains for node in (chain.norm, *chain.nodes) if node.op == "call_module"]
    result = Rewritten(
        [_describe(chain) for chain in chains],
        [str(node.target) for node in nodes],
        [str(node.target) for node in nodes if is_identity(node, modules)],
        [(_name(item.norm), item.reason) for item in left],
    )
    for chain in chains:
        _replace_chain(graph, chain)
    for node in graph.nodes:
        if node.op == "call_module" and activations.of_module(modules[str(node.target)]):
            (result.only_read if is_only_read(node, modules) else result.changed).append(str(node.target))
    for node in list(graph.nodes):
        if _replace_single(graph, node, singles, modules):
            result.singles.append(_name(node))
    return result


def _describe(chain: Chain) -> str:
    """Such as "bn2 + residual → relu"."""
    text = _name(chain.norm) + (" + residual" if chain.residual is not None else "")
    if chain.activation is None:
        return text
    return f"{text} → {_name(chain.activation) if isinstance(chain.activation, Node) else chain.activation.name}"


def _name(node: Node) -> str:
    return (
        str(node.target) if node.op in ("call_module", "call_method") else getattr(node.target, "__name__", node.name)
    )


def _replace_chain(graph: Graph, chain: Chain) -> None:
    with graph.inserting_before(chain.end):
        act, act_kwargs = _activation_arguments(graph, chain.activation)
        if chain.norm.op == "call_module":
            norm = graph.get_attr(str(chain.norm.target))
            arguments = (norm, chain.norm.args[0], chain.residual, act, act_kwargs, chain.how_it_adds)
            new = graph.call_function(run_time.norm_act, arguments)
        else:
            bound = _BATCH_NORM.bind(*chain.norm.args, **chain.norm.kwargs).arguments
            more = {"residual": chain.residual, "act": act, "act_kwargs": act_kwargs, "addition": chain.how_it_adds}
            new = graph.call_function(run_time.batch_norm_act, (), {**bound, **more})
    _put(graph, new, chain.end)
    for node in reversed([chain.norm, *chain.nodes[:-1]]):
        graph.erase_node(node)


def _activation_arguments(graph: Graph, activation: activations.Activation | Node | None) -> tuple[Any, Any]:
    if activation is None:
        return None, None
    if isinstance(activation, Node):
        return graph.get_attr(str(activation.target)), None
    return activation.name, activation.parameters or None


def _replace_single(graph: Graph, node: Node, singles: Singles, modules: Modules) -> bool:
    found = activations.of_node(node)
    function: Any
    if found and singles.activations:
        if found[0].name in activations.KEEPS_RESULT and not is_only_read(node, modules):
            return False
        function, arguments = run_time.activation, _single_activation(node, *found)
    elif node.op == "call_function" and node.target is F.dropout and singles.dropout:
        function, arguments = run_time.dropout, dict(_DROPOUT.bind(*node.args, **node.kwargs).arguments)
    elif node.op == "call_function" and node.target is F.batch_norm:
        function, arguments = run_time.batch_norm_act, dict(_BATCH_NORM.bind(*node.args, **node.kwargs).arguments)
    else:
        return False
    with graph.inserting_before(node):
        new = graph.call_function(function, (), arguments)
    _put(graph, new, node)
    return True


def _single_activation(node: Node, activation: activations.Activation, source: Node) -> dict[str, Any]:
    inplace = is_in_place(node) or str(getattr(node.target, "__name__", node.target)).endswith("_")
    return {"input": source, "act": activation.name, "inplace": inplace, **activation.parameters}


def _put(graph: Graph, new: Node, old: Node) -> None:
    new.meta.update(old.meta)
    old.replace_all_uses_with(new)
    graph.erase_node(old)
