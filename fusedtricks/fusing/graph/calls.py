"""Creates the nodes that replace chains and single layers: calls to `norms`, `tails` and `masks`."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Graph, Node

from ..layers import activations
from ..running import joins, masks, norms, tails
from .aliases import Modules
from .chain import Chain
from .kinds import (
    ACTIVATION,
    DROP_PATH,
    DROPOUT,
    FRACTIONAL_POOL,
    LINEAR,
    MAX_POOL,
    NORM,
    activation_of,
    arguments,
    settings,
    writes,
)

_CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)


def concatenated(node: Node) -> list[Node] | None:
    """The tensors that a node concatenates; None for another node, and where they are not known."""
    if node.op != "call_function" or node.target not in _CONCATENATIONS or "out" in node.kwargs:
        return None
    tensors = node.args[0] if node.args else node.kwargs.get("tensors")
    is_known = isinstance(tensors, (list, tuple)) and all(isinstance(tensor, Node) for tensor in tensors)
    return [tensor for tensor in tensors if isinstance(tensor, Node)] if is_known else None  # type: ignore[union-attr]


def call_of_chain(graph: Graph, chain: Chain, modules: Modules, owns: bool) -> Node:
    """Inserts one call for a chain at the chain's end; `owns` is `legality.owns_source`."""
    is_apart = _is_apart(chain)
    with graph.inserting_before(chain.end):
        function, given = _call(graph, chain, modules, owns)
        node = graph.call_function(function, given)
    node.meta["chain"] = Called(_members(chain), is_apart, _at_once(chain, modules, given))
    return node


class Called(NamedTuple):
    """What else is known of the call of a chain; in the call's `meta["chain"]`.

    Attributes:
        members: the names of its modules.
        is_apart: something else happens between them, so that they cannot run one after the other at the chain's end.
        at_once: a faster call for members that are what they were, if there is one: function and arguments.
    """

    members: list[str]
    is_apart: bool
    at_once: tuple[Any, tuple[Any, ...]] | None


def replace_in_chain(call: Node, old: Node, new: Node) -> None:
    """Replaces an argument of the faster call of a chain; those of the call itself are known to the graph."""
    called: Called | None = call.meta.get("chain")
    if called is not None and called.at_once is not None:
        function, given = called.at_once
        given = tuple(new if value is old else value for value in given)
        call.meta["chain"] = called._replace(at_once=(function, given))


def _members(chain: Chain) -> list[str]:
    return [str(node.target) for node in chain.nodes if node.op == "call_module"]


def _is_apart(chain: Chain) -> bool:
    return any(node.op not in ("get_attr", "placeholder") for node in chain.between(chain.head))


def _call(graph: Graph, chain: Chain, modules: Modules, owns: bool) -> tuple[Any, tuple[Any, ...]]:
    node, source, adds = chain.node, chain.source, chain.how_it_adds
    act = _activation(graph, node(ACTIVATION))
    dropout = _member(graph, node(DROPOUT))
    if path := node(DROP_PATH):
        return tails.drop_path, (_member(graph, path), source, chain.residual, adds)
    if norm := node(NORM):
        layer = _norm(graph, norm)
        if pool := node(MAX_POOL):
            return norms.norm_act_pool, (layer, source, *act, _member(graph, pool))
        return norms.norm_act, (layer, source, chain.residual, *act, adds, dropout)
    if pool := node(FRACTIONAL_POOL):
        return tails.act_pool, (source, *act, _member(graph, pool), _name_of_pool(pool, modules), owns)
    return tails.tail, (_linear(graph, node(LINEAR)), source, *act, dropout, chain.residual, adds, owns)


def _at_once(chain: Chain, modules: Modules, given: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]] | None:
    norm, act, dropout = chain.node(NORM), chain.node(ACTIVATION), chain.node(DROPOUT)
    if not norm or norm.op != "call_module" or chain.node(MAX_POOL) or (dropout and dropout.op != "call_module"):
        return None
    found = activation_of(act, modules) if act else activations.Activation("identity", {})
    layer, source, residual, act_layer, act_kwargs, (residual_first, _), drop = given
    is_layer = act is not None and act.op == "call_module"
    may_change = is_layer and (bool(found.parameters) or found.name in ("gelu", "gelu_tanh"))
    arguments = (layer, source, residual, act_layer if may_change else found.name, act_kwargs, residual_first, drop)
    return norms.norm_act_at_once, arguments


def _module(graph: Graph, node: Node) -> Node:
    return graph.get_attr(str(node.target))


def _member(graph: Graph, node: Node | None) -> Any:
    """A module, or the settings of a function; None for no node."""
    if node is None:
        return None
    return _module(graph, node) if node.op == "call_module" else settings(node)


def _activation(graph: Graph, node: Node | None) -> tuple[Any, Any]:
    if node is None:
        return None, None
    if node.op == "call_module":
        return _module(graph, node), None
    found = activations.of_node(node)
    return (found[0].name, found[0].parameters or None) if found else (None, None)


def _norm(graph: Graph, node: Node) -> Any:
    if node.op == "call_module":
        return _module(graph, node)
    return {name: value for name, value in arguments(node).items() if name != "input"}


def _linear(graph: Graph, node: Node | None) -> Any:
    if node is None:
        return None
    if node.op == "call_module":
        return _module(graph, node)
    given = arguments(node)
    return given["weight"], given["bias"]


def _name_of_pool(node: Node, modules: Modules) -> str:
    if node.op == "call_function":
        return str(getattr(node.target, "__name__", ""))
    is_3d = isinstance(modules[str(node.target)], nn.FractionalMaxPool3d)
    return "fractional_max_pool3d" if is_3d else "fractional_max_pool2d"


def call_of_single(graph: Graph, node: Node, is_activation: bool, is_random: bool, is_only_read: bool) -> Node | None:
    """Inserts a call to our version of a stock function that is in no chain; None if there is none or it is disabled.

    An activation that keeps its result for backward where stock keeps the input is only replaced if `is_only_read`, and
    so is a concatenation.
    """
    found = activations.of_node(node)
    function: Any
    values: tuple[Any, ...] = ()
    given: dict[str, Any] = {}
    if found and is_activation:
        activation, source = found
        if activations.keeps_result_unlike_stock(*activation) and not is_only_read:
            return None
        function = norms.activation
        given = {"input": source, "act": activation.name, "inplace": writes(node, {}), **activation.parameters}
    elif node.op == "call_function" and node.target in masks.OURS and is_random:
        function, values, given = masks.OURS[node.target], node.args, dict(node.kwargs)
    elif node.op == "call_function" and node.target is F.batch_norm:
        function, values = norms.norm_act, (_norm(graph, node), arguments(node)["input"])
    elif is_only_read and concatenated(node) is not None:
        function, values, given = joins.cat, node.args, dict(node.kwargs)
    else:
        return None
    with graph.inserting_before(node):
        return graph.call_function(function, values, given)
