"""Batch normalisation, a residual, an activation and dropout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .. import _C, eager
from ._arguments import activation_arguments, check_dropout, check_tensors, signed_seed
from ._route import Route, is_dynamo_compiling, ops, otherwise


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
    p: float = 0.0,
    seed: int | None = None,
) -> Tensor:
    r"""Equivalent to `F.dropout(act(F.batch_norm(input, running_mean, …, training) + residual), p, training)`.

    Batch normalisation (Ioffe & Szegedy, 2015), an optional residual and an activation: one pass over memory for the
    statistics and one for the rest. Kept for backward: the input and two values per channel; with a residual also the
    output (which the next layer keeps anyway), or the residual if the derivative cannot be computed from the output.

    Dropout (Srivastava et al., 2014) comes last, as in wide residual networks (Zagoruyko & Komodakis, 2016), in the
    same pass. The mask is that of `functional.dropout` for a tensor of this shape and the same seed. Only the seed is
    kept in addition; with a residual, every activation except relu then keeps the residual.

    Args:
        input: (N, C) or (N, C, \*); float32, float64, bfloat16 or float16. Contiguous and channels-last memory are used
            as they are; other strides cost one copy.
        running_mean: (C,), or None. The moving average used in evaluation and updated in training.
        running_var: (C,), or None. The same for the unbiased variance.
        weight: (C,), the paper's γ, or None for 1. Like the running statistics in `input`'s dtype; for bfloat16 and
            float16 input also float32.
        bias: (C,), the paper's β, or None for 0.
        residual: added before the activation; of `input`'s shape, dtype and device, or None.
        act: one of `ACTIVATIONS`.
        act_kwargs: parameters of the activation, for example `{"negative_slope": 0.2}` for `"leaky_relu"`.
        training: normalise with the statistics of this batch and apply dropout; otherwise normalise with the running
            statistics, without dropout.
        momentum: weight of the batch in the running statistics (the lecture's α), or None for a cumulative average.
        eps: added to the variance.
        num_batches_tracked: int64 scalar that counts the batches in training, or None. Without it, `momentum=None`
            leaves the running statistics as they are.
        p: probability of *dropping* a value of the result, in [0, 1]; kept values are divided by 1 - p. A layer without
            running statistics uses batch statistics (`training=True`) in evaluation too; it must pass 0 there.
        seed: 64-bit seed of the mask. None draws one from torch's generator if anything is dropped.

    Returns:
        A tensor of `input`'s shape, dtype and memory format.

    Raises:
        ValueError: unknown `act`; in training `eps` not positive, only one value per channel, only one of the running
            statistics; `p` outside [0, 1] or NaN; `seed` does not fit 64 bits.
        TypeError: `input` is not a tensor; `act_kwargs` that the activation does not take.
        IndexError: `input` has fewer than 2 dimensions.
        RuntimeError: a tensor's shape, dtype or device does not match `input`; evaluation without running statistics.
    """
    arguments = (
        *(input, running_mean, running_var, weight, bias, residual, act, act_kwargs),
        *(training, momentum, eps, num_batches_tracked, p, seed),
    )
    y = None if is_dynamo_compiling() else _C.batch_norm_act(*arguments)
    return otherwise(_ROUTE, *arguments) if y is None else y


_COUNT = "num_batches_tracked"
_TENSORS = ("input", "running_mean", "running_var", "weight", "bias", "residual")


def check_batch_norm_act(
    *, act: Any, act_kwargs: Any, momentum: Any, eps: Any, p: Any = 0.0, seed: Any = None, **others: Any
) -> None:
    """TypeError, ValueError or OverflowError for arguments that are wrong for any tensors."""
    activation_arguments(act, act_kwargs)
    for number in (eps, 0 if momentum is None else momentum):
        float(number)
    check_dropout(p)
    signed_seed(seed)
    check_tensors("batch_norm_act", **{name: others[name] for name in (*_TENSORS, _COUNT) if name in others})


def counted(operator: Callable[..., Any], input: Tensor, arguments: dict[str, Any]) -> Any:
    """Calls an operator with BatchNorm's arguments.

    What the operators cannot count in, a tensor of any other kind than an int64 scalar on the input's device, is
    counted in here, as in stock's modules.
    """
    count = arguments[_COUNT]
    if count is None or not arguments["training"]:
        return operator(input, **arguments | {_COUNT: None})
    if count.dim() == 0 and count.dtype == torch.int64 and count.device == input.device:
        return operator(input, **arguments)
    momentum = eager.average_factor(arguments["momentum"], count)
    result = operator(input, **arguments | {_COUNT: None, "momentum": momentum})
    count.add_(1)
    return result


def _operator(
    *, input: Tensor, act: str, act_kwargs: Mapping[str, float] | None, p: float, seed: int | None, **others: Any
) -> Tensor:
    arguments = others | {"act": act, "act_args": activation_arguments(act, act_kwargs)}
    if others["training"] and p > 0:
        arguments |= {"p": p, "seed": signed_seed(seed)}
        return counted(ops.batch_norm_act_dropout, input, arguments)[0]
    return counted(ops.batch_norm_act, input, arguments)[0]


_ROUTE = Route(
    batch_norm_act,
    _TENSORS,
    check=check_batch_norm_act,
    operator=_operator,
    composition=eager.batch_norm_act,
    numbers=("eps", "p"),
    optional_numbers=("momentum",),
    is_exported=lambda training, **others: not training,
)
