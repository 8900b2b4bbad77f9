"""The operators as functions, with the arguments of `torch.nn.functional`.

Each goes through PyTorch's dispatcher to one C++ or CUDA kernel a direction. Under `torch.func` transforms and
forward-mode differentiation, which C++ autograd functions do not take part in, the same values come from the eager
composition in `fusedtricks.eager`; also where a model is exported (`torch.export`, ONNX) in evaluation mode, which then
needs no operator of ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary, has_torch_function_variadic

from . import _C, eager

__all__ = [
    "ACTIVATIONS",
    "activation",
    "batch_norm_act",
    "dropout",
    "elu",
    "gelu",
    "hardswish",
    "leaky_relu",
    "mish",
    "relu",
    "relu6",
    "selu",
    "sigmoid",
    "silu",
    "softplus",
    "tanh",
]

ACTIVATIONS: dict[str, dict[str, float]] = {name: dict(parameters) for name, parameters in _C.activations()}
"""Every activation by name, with its parameters and their defaults."""

_DEFAULT_ARGUMENTS = {name: list(parameters.values()) for name, parameters in ACTIVATIONS.items()}
_ops = torch.ops.fusedtricks


def activation_arguments(act: str, act_kwargs: Mapping[str, float] | None) -> list[float]:
    """The parameters of an activation in the order that the operators take them.

    Raises:
        ValueError: if `act` is not one of `ACTIVATIONS`.
        TypeError: if `act_kwargs` names a parameter that the activation does not have.
    """
    if act not in ACTIVATIONS:
        raise ValueError(f"act: unknown activation {act!r}; known are: {', '.join(ACTIVATIONS)}")
    if not act_kwargs:
        return _DEFAULT_ARGUMENTS[act]
    parameters = ACTIVATIONS[act]
    for name in act_kwargs:
        if name not in parameters:
            takes = ", ".join(parameters) or "none"
            raise TypeError(f"act_kwargs: {act} has no parameter {name!r}; it takes: {takes}")
    return [_number(act, name, act_kwargs.get(name, default)) for name, default in parameters.items()]


def _number(act: str, name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        kind = type(value).__name__
        raise TypeError(f"{act}(): argument {name!r} must be a number, not {kind}") from None


def _needs_composition() -> bool:
    """Whether a transform is active that C++ autograd functions do not support."""
    return torch._C._functorch.peek_interpreter_stack() is not None or torch.autograd.forward_ad._current_level >= 0


def _is_exporting() -> bool:
    """Whether a model is being exported: what is exported for evaluation is to need nothing but stock operators."""
    return torch.compiler.is_compiling() and torch.compiler.is_exporting()


def _check_types(op: str, tensors: Mapping[str, Any], numbers: Mapping[str, Any]) -> None:
    """TypeError for the first argument of a wrong type; the first of `tensors` must be one, the others may be None."""
    for i, (name, value) in enumerate(tensors.items()):
        if not isinstance(value, Tensor) and (i == 0 or value is not None):
            raise TypeError(f"{op}(): argument {name!r} must be Tensor, not {type(value).__name__}")
    for name, value in numbers.items():
        if value is not None and not isinstance(value, (int, float)):
            raise TypeError(f"{op}(): argument {name!r} must be a number, not {type(value).__name__}")


def batch_norm_act(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    act: str = "relu",
    act_kwargs: Mapping[str, float] | None = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    num_batches_tracked: Tensor | None = None,
) -> Tensor:
    r"""Equivalent to `act(F.batch_norm(input, running_mean, running_var, weight, bias, training, …) + residual)`.

    Batch normalisation (Ioffe & Szegedy, 2015), an optional residual and an activation, in one sweep over memory after
    the one for the statistics. For backward the input is kept, and two values per channel; with a residual also the
    output (which the next layer keeps anyway), or the residual where the activation cannot be read off the output.

    Args:
        input: (N, C) or (N, C, \*), float32, float64, bfloat16 or float16. Contiguous and channels-last memory are both
            taken as they are; other strides cost one copy.
        running_mean: (C,), or None. The moving average used in evaluation, updated in training.
        running_var: (C,), or None. The same of the unbiased variance.
        weight: (C,), the γ of the paper, or None for 1. As the running statistics in `input`'s dtype, or float32 with
            bfloat16 and float16 input.
        bias: (C,), the β of the paper, or None for 0.
        residual: of `input`'s shape, dtype and device, added before the activation, or None.
        act: one of `ACTIVATIONS`.
        act_kwargs: its parameters, for example `{"negative_slope": 0.2}` for `"leaky_relu"`.
        training: normalise with the statistics of this batch, else with the running ones.
        momentum: weight of the batch in the running statistics (the lecture's α), or None for a cumulative average.
        eps: added to the variance.
        num_batches_tracked: int64 scalar that counts the batches in training, or None. `momentum=None` needs it.

    Returns:
        A tensor of `input`'s shape, dtype and memory format.

    Raises:
        ValueError: unknown `act`; `eps` not positive, one value per channel, running statistics given by half, or
            `momentum` outside [0, 1], in training.
        TypeError: `input` is not a tensor; `act_kwargs` that the activation does not take.
        NotImplementedError: `input` of another dtype, or on a device without a backend.
        IndexError: `input` of fewer than 2 dimensions.
        RuntimeError: a tensor whose shape, dtype or device does not fit `input`; evaluation without running statistics.
    """
    if has_torch_function_variadic(input, running_mean, running_var, weight, bias, residual):
        return handle_torch_function(
            batch_norm_act,
            (input, running_mean, running_var, weight, bias, residual),
            input,
            running_mean,
            running_var,
            weight,
            bias,
            residual,
            act=act,
            act_kwargs=act_kwargs,
            training=training,
            momentum=momentum,
            eps=eps,
            num_batches_tracked=num_batches_tracked,
        )
    arguments = activation_arguments(act, act_kwargs)
    buffers = (running_mean, running_var, num_batches_tracked)
    exported = not training and _is_exporting()
    if torch.compiler.is_compiling() and not exported:
        return _ops.batch_norm_act(input, *buffers, weight, bias, residual, act, arguments, training, momentum, eps)[0]
    if exported or _needs_composition():
        return eager.batch_norm_act(
            input,
            running_mean,
            running_var,
            weight,
            bias,
            residual,
            act=act,
            act_kwargs=act_kwargs,
            training=training,
            momentum=momentum,
            eps=eps,
            num_batches_tracked=num_batches_tracked,
        )
    try:
        return _C.batch_norm_act(input, *buffers, weight, bias, residual, act, arguments, training, momentum, eps)
    except TypeError:
        tensors = {
            "input": input,
            "running_mean": running_mean,
            "running_var": running_var,
            "num_batches_tracked": num_batches_tracked,
            "weight": weight,
            "bias": bias,
            "residual": residual,
        }
        _check_types("batch_norm_act", tensors, {"momentum": momentum, "eps": eps})
        raise


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
    exported = _is_exporting()
    if torch.compiler.is_compiling() and not exported:
        if not inplace:
            return _ops.activation(input, act, arguments)
        _ops.activation_(input, act, arguments)
        return input
    if exported or _needs_composition():
        if not inplace:
            return eager.activation(input, act, **act_kwargs)
        return input.copy_(eager.activation(input.clone(), act, **act_kwargs))
    try:
        return _C.activation(input, act, arguments, inplace)
    except TypeError:
        _check_types(act, {"input": input}, {})
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


def check_dropout(p: float, mode: str) -> None:
    """ValueError unless 0 <= p <= 1 and the mode is known; TypeError where p is no number."""
    _check_types("dropout", {}, {"p": p})
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
    if mode not in ("inverted", "classic"):
        raise ValueError(f"mode has to be 'inverted' or 'classic', but got {mode!r}")


def _signed_seed(seed: int | None) -> int | None:
    """A 64-bit seed, signed or not, as the int64 that operators take."""
    if seed is None:
        return None
    if not isinstance(seed, int):
        raise TypeError(f"dropout(): argument 'seed' must be int, not {type(seed).__name__}")
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed has to fit 64 bits, but got {seed}")
    return seed - 2**64 if seed >= 2**63 else seed


def dropout(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    seed: int | None = None,
    mode: str = "inverted",
) -> Tensor:
    """Equivalent to `F.dropout(input, p, training, inplace)`, with another stream of random bits.

    Inverted dropout (Srivastava et al., 2014): in training, values are zeroed with probability `p` and the others
    divided by 1 - p; in evaluation the input is returned. `mode="classic"` is the first form, of that paper and the
    lecture: training does not divide, evaluation multiplies by 1 - p. (The p of the lecture is that of *keeping*.)

    The mask is a function of the seed and of each element's logical index alone (Philox4x32-10, Salmon et al., 2011):
    the same for every memory format, dtype, number of threads and device, in the first run and in a recomputation.
    Nothing is kept for backward but the seed.

    Args:
        input: any shape; float32, float64, bfloat16 or float16.
        p: probability of *dropping* a value, in [0, 1].
        training: drop; else the evaluation's form.
        inplace: write the result over `input`.
        seed: 64-bit seed of the mask. None draws one from torch's generator, which `torch.manual_seed` governs.
        mode: "inverted" or "classic".

    Returns:
        A tensor like `input`; `input` itself if `inplace` or nothing is to be done.

    Raises:
        ValueError: `p` outside [0, 1] or NaN; unknown `mode`; `seed` that does not fit 64 bits.
        TypeError: `input` is not a tensor.
        NotImplementedError: `input` of another dtype, or on a device without a backend.
        RuntimeError: `inplace` on a leaf that requires grad.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(dropout, (input,), input, p, training, inplace, seed=seed, mode=mode)
    check_dropout(p, mode)
    if not training:
        if mode == "inverted" or p == 0:
            return input
        return input.mul_(1 - p) if inplace else input * (1 - p)
    if p == 0:
        return input
    seed = _signed_seed(seed)
    inverted = mode == "inverted"
    if torch.compiler.is_compiling():
        if not inplace:
            return _ops.dropout(input, p, inverted, seed)[0]
        _ops.dropout_(input, p, inverted, seed)
        return input
    if _needs_composition():
        result = eager.dropout(input, p, seed=seed, mode=mode)
        return input.copy_(result) if inplace else result
    try:
        return _C.dropout(input, p, inverted, seed, inplace)
    except TypeError:
        _check_types("dropout", {"input": input}, {"p": p})
        raise
