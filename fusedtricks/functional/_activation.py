"""The activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from .. import _C, eager
from ._arguments import activation_arguments, check_tensors
from ._route import Route, is_dynamo_compiling, ops, otherwise


def activation(input: Tensor, act: str, *, inplace: bool = False, **act_kwargs: float) -> Tensor:
    """Equivalent to the function `act` of `torch.nn.functional`, for example `F.leaky_relu(input, negative_slope)`.

    One tensor is kept for backward: the result if the derivative can be computed from it, else the input.

    Args:
        input: any shape; float32, float64, bfloat16 or float16. Dense strides are kept.
        act: one of `ACTIVATIONS`.
        inplace: write the result over `input`.
        **act_kwargs: the activation's parameters, named as in `ACTIVATIONS`.

    Returns:
        A tensor like `input`, or `input` itself if `inplace`.

    Raises:
        ValueError: unknown `act`.
        TypeError: a parameter that the activation does not take; `input` is not a tensor.
        RuntimeError: `inplace` on a leaf that requires grad.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(activation, (input,), input, act, inplace=inplace, **act_kwargs)
    parameters = activation_arguments(act, act_kwargs)
    y = None if is_dynamo_compiling() else _C.activation(input, act, inplace, *parameters)
    return otherwise(_ROUTE, input, act, inplace, act_kwargs) if y is None else y


def _activation(input: Tensor, act: str, inplace: bool, act_kwargs: dict[str, float]) -> Tensor:
    return activation(input, act, inplace=inplace, **act_kwargs)


def _check(input: Any, act: str, inplace: Any, act_kwargs: dict[str, float]) -> None:
    check_tensors(act, input=input)


def _operator(input: Tensor, act: str, inplace: bool, act_kwargs: dict[str, float]) -> Tensor:
    parameters = activation_arguments(act, act_kwargs)
    if not inplace:
        return ops.activation(input, act, parameters)
    ops.activation_(input, act, parameters)
    return input


def _composition(input: Tensor, act: str, inplace: bool, act_kwargs: dict[str, float]) -> Tensor:
    if not inplace:
        return eager.activation(input, act, **act_kwargs)
    return input.copy_(eager.activation(input.clone(), act, **act_kwargs))


_IN_PLACE = {"relu", "relu6", "leaky_relu", "elu", "selu", "silu", "mish", "hardswish", "hardsigmoid"}
"""Activations that stock has in place."""


def _stock(input: Tensor, act: str, inplace: bool, act_kwargs: dict[str, float]) -> Tensor:
    function: Callable[..., Tensor] = F.hardsigmoid if act == "hardsigmoid" else eager.FORMULAS[act]
    if not inplace:
        return function(input, **act_kwargs)
    if act in _IN_PLACE:
        return function(input, inplace=True, **act_kwargs)
    if act in ("sigmoid", "tanh"):
        return getattr(input, f"{act}_")()
    return input.copy_(function(input, **act_kwargs))


_ROUTE = Route(
    _activation,
    ("input",),
    check=_check,
    operator=_operator,
    composition=_composition,
    stock=_stock,
    is_exported=lambda **arguments: True,
)


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """Equivalent to `F.relu(input, inplace)`: max(x, 0). See `activation`."""
    y = None if is_dynamo_compiling() else _C.activation(input, "relu", inplace)
    return activation(input, "relu", inplace=inplace) if y is None else y


def relu6(input: Tensor, inplace: bool = False) -> Tensor:
    """Equivalent to `F.relu6(input, inplace)`: min(max(x, 0), 6). See `activation`."""
    y = None if is_dynamo_compiling() else _C.activation(input, "relu6", inplace)
    return activation(input, "relu6", inplace=inplace) if y is None else y


def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """Equivalent to `F.leaky_relu(input, negative_slope, inplace)`: x, or `negative_slope` x below 0.

    `negative_slope` is the lecture's a. Keeps the result for backward (or the input, if `negative_slope` is negative).
    See `activation`.
    """
    y = None if is_dynamo_compiling() else _C.activation(input, "leaky_relu", inplace, negative_slope)
    return activation(input, "leaky_relu", inplace=inplace, negative_slope=negative_slope) if y is None else y


def elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """Equivalent to `F.elu(input, alpha, inplace)`: x, or alpha (e^x - 1) below 0. See `activation`."""
    y = None if is_dynamo_compiling() else _C.activation(input, "elu", inplace, alpha)
    return activation(input, "elu", inplace=inplace, alpha=alpha) if y is None else y


def selu(input: Tensor, inplace: bool = False) -> Tensor:
    """Equivalent to `F.selu(input, inplace)`: the scaled ELU of self-normalising networks. See `activation`."""
    y = None if is_dynamo_compiling() else _C.activation(input, "selu", inplace)
    return activation(input, "selu", inplace=inplace) if y is None else y


def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """Equivalent to `F.gelu(input, approximate=approximate)`: x Φ(x), or its tanh form. See `activation`.

    Raises:
        RuntimeError: `approximate` is neither "none" nor "tanh".
        TypeError: `approximate` is not a string.
    """
    if not isinstance(approximate, str):
        raise TypeError(f"gelu(): argument 'approximate' must be str, not {type(approximate).__name__}")
    if approximate not in ("none", "tanh"):
        raise RuntimeError(f"approximate argument must be either none or tanh, but got {approximate!r}")
    act = "gelu" if approximate == "none" else "gelu_tanh"
    y = None if is_dynamo_compiling() else _C.activation(input, act, False)
    return activation(input, act) if y is None else y


def sigmoid(input: Tensor) -> Tensor:
    """Equivalent to `torch.sigmoid(input)`: 1 / (1 + e^-x). See `activation`."""
    y = None if is_dynamo_compiling() else _C.activation(input, "sigmoid", False)
    return activation(input, "sigmoid") if y is None else y


def tanh(input: Tensor) -> Tensor:
    """Equivalent to `torch.tanh(input)`. See `activation`."""
    y = None if is_dynamo_compiling() else _C.activation(input, "tanh", False)
    return activation(input, "tanh") if y is None else y


def silu(input: Tensor, inplace: bool = False) -> Tensor:
    """Equivalent to `F.silu(input, inplace)`: x sigmoid(x). See `activation`."""
    y = None if is_dynamo_compiling() else _C.activation(input, "silu", inplace)
    return activation(input, "silu", inplace=inplace) if y is None else y


def mish(input: Tensor, inplace: bool = False) -> Tensor:
    """Equivalent to `F.mish(input, inplace)`: x tanh(softplus(x)). See `activation`."""
    y = None if is_dynamo_compiling() else _C.activation(input, "mish", inplace)
    return activation(input, "mish", inplace=inplace) if y is None else y


def hardswish(input: Tensor, inplace: bool = False) -> Tensor:
    """Equivalent to `F.hardswish(input, inplace)`: x relu6(x + 3) / 6. See `activation`."""
    y = None if is_dynamo_compiling() else _C.activation(input, "hardswish", inplace)
    return activation(input, "hardswish", inplace=inplace) if y is None else y


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """Equivalent to `F.hardsigmoid(input, inplace)`: relu6(x + 3) / 6. See `activation`."""
    y = None if is_dynamo_compiling() else _C.activation(input, "hardsigmoid", inplace)
    return activation(input, "hardsigmoid", inplace=inplace) if y is None else y


def softplus(input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """Equivalent to `F.softplus(input, beta, threshold)`: log(1 + e^(beta x)) / beta. See `activation`."""
    y = None if is_dynamo_compiling() else _C.activation(input, "softplus", False, beta, threshold)
    return activation(input, "softplus", beta=beta, threshold=threshold) if y is None else y
