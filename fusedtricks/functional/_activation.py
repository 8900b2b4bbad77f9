"""The activations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from .. import _C, eager
from ._calls import activation_arguments, check_types, is_exporting, needs_composition, ops


def activation(input: Tensor, act: str, *, inplace: bool = False, **act_kwargs: float) -> Tensor:
    """Equivalent to the function of that name in `torch.nn.functional`, such as `F.leaky_relu(input, negative_slope)`.

    One tensor is kept for backward: the result where the derivative can be read off it, else the input.

    Args:
        input: any shape; float32, float64, bfloat16 or float16. Dense strides are kept.
        act: one of `ACTIVATIONS`.
        inplace: write the result over `input`.
        **act_kwargs: the activation's parameters, by the names in `ACTIVATIONS`.

    Returns:
        A tensor like `input`, or `input` itself if `inplace`.

    Raises:
        ValueError: unknown `act`.
        TypeError: a parameter that the activation does not take; `input` is not a tensor.
        NotImplementedError: `input` of another dtype, or on a device without a backend.
        RuntimeError: `inplace` on a leaf that requires grad.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(activation, (input,), input, act, inplace=inplace, **act_kwargs)
    arguments = activation_arguments(act, act_kwargs)
    exported = is_exporting()
    if torch.compiler.is_compiling() and not exported:
        if not inplace:
            return ops.activation(input, act, arguments)
        ops.activation_(input, act, arguments)
        return input
    if exported or needs_composition():
        if not inplace:
            return eager.activation(input, act, **act_kwargs)
        return input.copy_(eager.activation(input.clone(), act, **act_kwargs))
    try:
        return _C.activation(input, act, arguments, inplace)
    except TypeError:
        check_types(act, {"input": input}, {})
        raise


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """Equivalent to `F.relu(input, inplace)`: max(x, 0). See `activation`."""
    return activation(input, "relu", inplace=inplace)


def relu6(input: Tensor, inplace: bool = False) -> Tensor:
    """Equivalent to `F.relu6(input, inplace)`: min(max(x, 0), 6). See `activation`."""
    return activation(input, "relu6", inplace=inplace)


def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """Equivalent to `F.leaky_relu(input, negative_slope, inplace)`: x, or `negative_slope` x below 0.

    `negative_slope` is the lecture's a. Keeps the result for backward (the input if it is negative). See `activation`.
    """
    return activation(input, "leaky_relu", inplace=inplace, negative_slope=negative_slope)


def elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """Equivalent to `F.elu(input, alpha, inplace)`: x, or alpha (e^x - 1) below 0. See `activation`."""
    return activation(input, "elu", inplace=inplace, alpha=alpha)


def selu(input: Tensor, inplace: bool = False) -> Tensor:
    """Equivalent to `F.selu(input, inplace)`: the scaled ELU of self-normalising networks. See `activation`."""
    return activation(input, "selu", inplace=inplace)


def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """Equivalent to `F.gelu(input, approximate=approximate)`: x Φ(x), or its tanh form. See `activation`.

    Raises:
        RuntimeError: `approximate` is neither "none" nor "tanh".
    """
    if approximate not in ("none", "tanh"):
        raise RuntimeError(f"approximate argument must be either none or tanh, but got {approximate!r}")
    return activation(input, "gelu" if approximate == "none" else "gelu_tanh")


def sigmoid(input: Tensor) -> Tensor:
    """Equivalent to `torch.sigmoid(input)`: 1 / (1 + e^-x). See `activation`."""
    return activation(input, "sigmoid")


def tanh(input: Tensor) -> Tensor:
    """Equivalent to `torch.tanh(input)`. See `activation`."""
    return activation(input, "tanh")


def silu(input: Tensor, inplace: bool = False) -> Tensor:
    """Equivalent to `F.silu(input, inplace)`: x sigmoid(x). See `activation`."""
    return activation(input, "silu", inplace=inplace)


def mish(input: Tensor, inplace: bool = False) -> Tensor:
    """Equivalent to `F.mish(input, inplace)`: x tanh(softplus(x)). See `activation`."""
    return activation(input, "mish", inplace=inplace)


def hardswish(input: Tensor, inplace: bool = False) -> Tensor:
    """Equivalent to `F.hardswish(input, inplace)`: x relu6(x + 3) / 6. See `activation`."""
    return activation(input, "hardswish", inplace=inplace)


def softplus(input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """Equivalent to `F.softplus(input, beta, threshold)`: log(1 + e^(beta x)) / beta. See `activation`."""
    return activation(input, "softplus", beta=beta, threshold=threshold)
