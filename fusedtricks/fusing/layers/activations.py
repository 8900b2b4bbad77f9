"""Recognises which of our activations a module or graph node computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Node

from ... import _C
from ... import nn as ftnn
from ...functional._arguments import activation_arguments
from .classes import is_unchanged, remember


class Activation(NamedTuple):
    """An activation: its name in `functional.ACTIVATIONS` and its parameters."""

    name: str
    parameters: dict[str, float]


def _gelu(approximate: Any) -> Activation | None:
    name = {"none": "gelu", "tanh": "gelu_tanh"}.get(approximate)
    return Activation(name, {}) if name else None


_MODULES: dict[str, Callable[[Any], Activation | None]] = {
    "ReLU": lambda m: Activation("relu", {}),
    "ReLU6": lambda m: Activation("relu6", {}),
    "LeakyReLU": lambda m: Activation("leaky_relu", {"negative_slope": m.negative_slope}),
    "ELU": lambda m: Activation("elu", {"alpha": m.alpha}),
    "SELU": lambda m: Activation("selu", {}),
    "GELU": lambda m: _gelu(m.approximate),
    "Sigmoid": lambda m: Activation("sigmoid", {}),
    "Tanh": lambda m: Activation("tanh", {}),
    "SiLU": lambda m: Activation("silu", {}),
    "Mish": lambda m: Activation("mish", {}),
    "Hardswish": lambda m: Activation("hardswish", {}),
    "Hardsigmoid": lambda m: Activation("hardsigmoid", {}),
    "Softplus": lambda m: Activation("softplus", {"beta": m.beta, "threshold": m.threshold}),
}
_STOCK_KEEPS_RESULT = ("identity", "relu", "sigmoid", "tanh")

MODULE_NAMES = tuple(_MODULES)
"""The activations of `torch.nn` that have a fused twin in `fusedtricks.nn`."""

_READERS: dict[type[nn.Module], Callable[[Any], Activation | None]] = {
    getattr(library, name): read for name, read in _MODULES.items() for library in (nn, ftnn)
}

for _kind in _READERS:
    remember(_kind)

_FACTS: dict[tuple[Any, ...], dict[str, bool]] = {}


def _fact(which: str, name: str, parameters: Mapping[str, float] | None) -> bool:
    """A fact from the activation's C++ struct; False during a Dynamo trace if it has not been looked up before."""
    key = (name, *sorted((parameters or {}).items()))
    if key not in _FACTS and not torch.compiler.is_dynamo_compiling():
        _FACTS[key] = _C.activation_facts(name, activation_arguments(name, parameters))
    return _FACTS.get(key, {}).get(which, False)


def never_decreases(name: str, parameters: Mapping[str, float] | None) -> bool:
    """Whether the activation is monotone, so that the largest input gives the largest output."""
    return _fact("never_decreases", name, parameters)


def keeps_result(name: str, parameters: Mapping[str, float] | None) -> bool:
    """Whether our version keeps the result for backward instead of the input (or residual, after an addition)."""
    return _fact("keeps_result", name, parameters)


def keeps_result_unlike_stock(name: str, parameters: Mapping[str, float] | None) -> bool:
    """Whether our version keeps the result, which must then not be changed, but stock keeps the input."""
    return name not in _STOCK_KEEPS_RESULT and keeps_result(name, parameters)


def recognise(module_type: type[nn.Module], as_type: type[nn.Module]) -> None:
    """Registers `module_type` as an activation that is read like `as_type`."""
    if as_type in _READERS:
        _READERS[module_type] = _READERS[as_type]
        remember(module_type, as_type)


def of_module(module: nn.Module) -> Activation | None:
    """The activation that a module currently computes; None unless its type is a known one that is as it was."""
    kind = type(module)
    read = _READERS.get(kind)
    return read(module) if read and is_unchanged(kind) else None


# Parameters in positional order. A hardtanh counts as ReLU6 if its limits are 0 and 6.
_IN_ORDER: dict[str, tuple[str, ...]] = {
    "leaky_relu": ("negative_slope",),
    "elu": ("alpha",),
    "hardtanh": ("min_val", "max_val"),
    "softplus": ("beta", "threshold"),
}
_NAMES = (
    *("relu", "relu6", "leaky_relu", "elu", "selu", "gelu", "sigmoid", "tanh", "silu", "mish"),
    *("hardswish", "hardsigmoid", "softplus", "hardtanh"),
)
_SPELLINGS = [(library, name, suffix) for library in (torch, F) for name in _NAMES for suffix in ("", "_")]
_FUNCTIONS: dict[Any, str] = {
    getattr(library, name + suffix): name for library, name, suffix in _SPELLINGS if hasattr(library, name + suffix)
} | {torch.special.expit: "sigmoid"}
_METHODS = {name + suffix: name for name in ("relu", "sigmoid", "tanh") for suffix in ("", "_")}
_NOT_PARAMETERS = ("inplace", "input")


def of_node(node: Node) -> tuple[Activation, Node] | None:
    """The activation that a function or method call computes, and its input; None for any other node."""
    table: Mapping[Any, str] = {"call_function": _FUNCTIONS, "call_method": _METHODS}.get(node.op, {})
    name = table.get(node.target)
    if name is None:
        return None
    arguments = dict(zip(("input", *_IN_ORDER.get(name, ()), "inplace"), node.args, strict=False)) | node.kwargs
    source = arguments.get("input")
    parameters = {key: value for key, value in arguments.items() if key not in _NOT_PARAMETERS}
    if not isinstance(source, Node) or any(isinstance(value, Node) for value in parameters.values()):
        return None
    activation = _activation(name, parameters)
    return (activation, source) if activation else None


def _activation(name: str, parameters: dict[str, Any]) -> Activation | None:
    if name == "gelu":
        return _gelu(parameters.get("approximate", "none"))
    if name == "hardtanh":
        limits = parameters.get("min_val", -1.0), parameters.get("max_val", 1.0)
        return Activation("relu6", {}) if limits == (0, 6) else None
    known = set(parameters) <= set(_IN_ORDER.get(name, ()))
    return Activation(name, parameters) if known else None
