"""Batch normalisation, a residual, an activation and dropout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .. import _C, eager
from ._arguments import activation_arguments, check_dropout, check_types, signed_seed
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

    Batch normalisation (Ioffe & Szegedy, 2015), an optional residual and an activation, in one sweep over memory after
    the one for the statistics. For backward the input is kept, and two values per channel; with a residual also the
    output (which the next layer keeps anyway), or the residual where the activation cannot be read off the output.

    The last stage is dropout (Srivastava et al., 2014), as in wide residual networks (Zagoruyko & Komodakis, 2016),
    in the same sweep: its mask is that of `functional.dropout` for a tensor of this shape and that seed. It needs
    nothing more for backward but the seed; with a residual, all activations but relu then keep the residual.

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
        training: normalise with the statistics of this batch, and drop; else with the running ones, and do not.
        momentum: weight of the batch in the running statistics (the lecture's α), or None for a cumulative average.
        eps: added to the variance.
        num_batches_tracked: int64 scalar that counts the batches in training, or None. `momentum=None` needs it.
        p: probability of *dropping* a value of the result, in [0, 1]; the others are divided by 1 - p. A layer without
            running statistics, which normalises with those of the batch in evaluation too, has to pass 0 there.
        seed: 64-bit seed of the mask. None draws one from torch's generator, where anything is dropped.

    Returns:
        A tensor of `input`'s shape, dtype and memory format.

    Raises:
        ValueError: unknown `act`; `eps` not positive, one value per channel, running statistics given by half, or
            `momentum` outside [0, 1], in training; `p` outside [0, 1] or NaN; `seed` that does not fit 64 bits.
        TypeError: `input` is not a tensor; `act_kwargs` that the activation does not take.
        NotImplementedError: `input` of another dtype, or on a device without a backend.
        IndexError: `input` of fewer than 2 dimensions.
        RuntimeError: a tensor whose shape, dtype or device does not fit `input`; evaluation without running statistics.
    """
    arguments = (
        *(input, running_mean, running_var, weight, bias, residual, act, act_kwargs),
        *(training, momentum, eps, num_batches_tracked, p, seed),
    )
    y = None if is_dynamo_compiling() else _C.batch_norm_act(*arguments)
    return otherwise(_ROUTE, *arguments) if y is None else y


_TENSORS = ("input", "running_mean", "running_var", "weight", "bias", "residual")


def check_batch_norm_act(
    *, act: Any, act_kwargs: Any, momentum: Any, eps: Any, p: Any = 0.0, seed: Any = None, **others: Any
) -> None:
    """TypeError or ValueError for what is wrong whatever the tensors are."""
    activation_arguments(act, act_kwargs)
    check_dropout(p)
    signed_seed(seed)
    tensors = {name: others[name] for name in (*_TENSORS, "num_batches_tracked") if name in others}
    check_types("batch_norm_act", tensors, {"momentum": momentum, "eps": eps})


def _operator(
    *, act: str, act_kwargs: Mapping[str, float] | None, training: bool, p: float, seed: int | None, **others: Any
) -> Tensor:
    settings = {"act": act, "act_args": activation_arguments(act, act_kwargs), "training": training}
    if training and p > 0:
        return ops.batch_norm_act_dropout(**others, **settings, p=p, seed=signed_seed(seed))[0]
    return ops.batch_norm_act(**others, **settings)[0]


_ROUTE = Route(
    batch_norm_act,
    _TENSORS,
    check=check_batch_norm_act,
    operator=_operator,
    composition=eager.batch_norm_act,
    is_exported=lambda training, **others: not training,
)
