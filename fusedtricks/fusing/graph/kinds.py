"""Recognises which layer a graph node is, whether it calls a module or a function.

Recognises only nodes that can be part of a chain: they have one input, and their settings are not graph values.
"""

from __future__ import annotations

import inspect
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Node

from ..layers import activations, drop_paths, members
from ..layers.activations import Activation
from .aliases import Modules, is_in_place

NORM, LINEAR, ACTIVATION, ADDITION, DROPOUT, DROP_PATH, MAX_POOL, FRACTIONAL_POOL, IDENTITY = (
    *("norm", "linear", "activation", "addition", "dropout"),
    *("drop path", "max-pooling", "fractional max-pooling", "identity"),
)
RANDOM = (DROPOUT, DROP_PATH, FRACTIONAL_POOL)
"""Layers that draw random numbers."""

_ADD_FUNCTIONS = (operator.add, operator.iadd, torch.add)
_ADD_METHODS = ("add", "add_")


def _signature(function: str) -> inspect.Signature:
    return inspect.signature(getattr(F, function))


_FUNCTIONS: dict[Any, tuple[str, inspect.Signature]] = {
    F.batch_norm: (NORM, _signature("batch_norm")),
    F.linear: (LINEAR, inspect.signature(lambda input, weight, bias=None: None)),
    F.dropout: (DROPOUT, _signature("dropout")),
    F.max_pool2d: (MAX_POOL, _signature("_max_pool2d")),
    F.fractional_max_pool2d: (FRACTIONAL_POOL, _signature("_fractional_max_pool2d")),
    F.fractional_max_pool3d: (FRACTIONAL_POOL, _signature("_fractional_max_pool3d")),
}
"""Functions that are layers: their kind and signature."""


def kind_of(node: Node, modules: Modules) -> str:
    """The layer that a node is, or ""."""
    if node.op == "call_module":
        return _kind_of_module(modules[str(node.target)]) if len(node.args) == 1 and not node.kwargs else ""
    if operands(node):
        return ADDITION
    if activations.of_node(node):
        return ACTIVATION
    kind = _FUNCTIONS[node.target][0] if node.op == "call_function" and node.target in _FUNCTIONS else ""
    return kind if kind and _is_plain_call(kind, node) else ""


def _kind_of_module(module: nn.Module) -> str:
    if members.is_batch_norm(module):
        return NORM
    if activations.of_module(module):
        return ACTIVATION
    if members.is_linear(module):
        return LINEAR if module.bias is not None else ""
    if members.is_dropout(module):
        return DROPOUT
    if drop_paths.of_module(module):
        return DROP_PATH
    if members.is_max_pool(module) and not module.return_indices:
        return MAX_POOL
    if members.is_fractional_pool(module) and not module.return_indices:
        return FRACTIONAL_POOL
    return IDENTITY if type(module) is nn.Identity else ""


def _is_plain_call(kind: str, node: Node) -> bool:
    try:
        given = arguments(node)
    except TypeError:
        return False
    if kind == NORM:
        return True
    if kind == LINEAR:
        return all(isinstance(given.get(name), Node) for name in ("input", "weight", "bias"))
    source = given.pop("input", None)
    settings = [value for values in given.values() for value in (values if isinstance(values, tuple) else (values,))]
    return (
        isinstance(source, Node) and not any(isinstance(v, Node) for v in settings) and not given.get("return_indices")
    )


def arguments(node: Node) -> dict[str, Any]:
    """The arguments given to a function, by name, without defaults."""
    return dict(_FUNCTIONS[node.target][1].bind(*node.args, **node.kwargs).arguments)


def settings(node: Node) -> tuple[Any, ...]:
    """All arguments of a function but its input, in order."""
    bound = _FUNCTIONS[node.target][1].bind(*node.args, **node.kwargs)
    bound.apply_defaults()
    return bound.args[1:]


def source_of(node: Node) -> Node:
    """The value that a layer takes as input."""
    found: Any
    if node.op == "call_module":
        found = node.args[0]
    elif activation := activations.of_node(node):
        found = activation[1]
    else:
        found = arguments(node)["input"]
    return found


def operands(node: Node) -> tuple[Node, Node] | None:
    """The two operands of a tensor addition, else None. An in-place addition writes to the first."""
    is_add = node.op == "call_function" and node.target in _ADD_FUNCTIONS
    is_add = is_add or (node.op == "call_method" and node.target in _ADD_METHODS)
    added = (*node.args, *(node.kwargs[name] for name in ("input", "other") if name in node.kwargs))
    if not is_add or len(added) != 2 or node.kwargs.get("alpha", 1) != 1 or "out" in node.kwargs:
        return None
    a, b = added
    return (a, b) if isinstance(a, Node) and isinstance(b, Node) else None


def writes(node: Node, modules: Modules) -> bool:
    """Whether a layer writes its result over its input, or an addition over its first operand."""
    if node.op == "call_module":
        return bool(getattr(modules[str(node.target)], "inplace", False))
    if node.op == "call_function" and is_in_place(node):
        return True
    return node.target is operator.iadd or str(getattr(node.target, "__name__", node.target)).endswith("_")


def activation_of(node: Node, modules: Modules) -> Activation:
    """The activation that a node currently computes."""
    found = activations.of_module(modules[str(node.target)]) if node.op == "call_module" else None
    called = activations.of_node(node)
    return found or (called[0] if called else Activation("identity", {}))
