"""The tail of a layer: bias, activation, dropout and residual."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from .. import _C, eager
from ._calls import activation_arguments, check_types, is_exporting, needs_composition, ops, signed_seed
from ._dropout import check_dropout


def act_dropout(
    x: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    act: str = "relu",
    act_kwargs: Mapping[str, float] | None = None,
    p: float = 0.5,
    training: bool = True,
    seed: int | None = None,
) -> Tensor:
    r"""Equivalent to `F.dropout(act(x + bias), p, training) + residual`, with another stream of random bits.

    One pass over memory each way, with the bias's gradient summed in it. The mask is that of `dropout`: a function of
    the seed and of each element's logical index.

    Kept for backward: of relu without a residual the result alone, which shows both what was dropped and the
    derivative; of the identity the seed; of others the seed and one tensor: the result where the derivative can be read
    off it and there is no residual (the next layer keeps it anyway), else `x`.

    Args:
        x: any shape; float32, float64, bfloat16 or float16. Contiguous and channels-last memory are both taken as they
            are; other strides cost one copy.
        bias: (F,), for the last dimension of x, as after a linear layer; or (C, 1, …, 1) with as many dimensions as a
            sample, for the channels of an (N, C, \*) tensor; or None. Of x's dtype, or float32 with the half types.
        residual: of x's shape, dtype and device (under autocast, of another dtype too), added last; or None.
        act: one of `ACTIVATIONS`.
        act_kwargs: its parameters, for example `{"negative_slope": 0.2}` for `"leaky_relu"`.
        p: probability of *dropping* a value, in [0, 1].
        training: drop; else `act(x + bias) + residual`.
        seed: 64-bit seed of the mask. None draws one from torch's generator, where there is something to drop.

    Returns:
        A tensor of x's shape, dtype and memory format.

    Raises:
        ValueError: unknown `act`; `p` outside [0, 1] or NaN; `seed` that does not fit 64 bits.
        TypeError: `x` is not a tensor; `act_kwargs` that the activation does not take.
        RuntimeError: a bias or residual whose shape, dtype or device does not fit `x`.
        NotImplementedError: `x` of another dtype, or on a device without a backend.
    """
    if has_torch_function_variadic(x, bias, residual):
        return handle_torch_function(
            act_dropout,
            (x, bias, residual),
            x,
            bias,
            residual,
            act=act,
            act_kwargs=act_kwargs,
            p=p,
            training=training,
            seed=seed,
        )
    arguments = activation_arguments(act, act_kwargs)
    check_dropout(p)
    p = p if training else 0.0
    seed = signed_seed(seed)
    exported = p == 0 and is_exporting()
    if torch.compiler.is_compiling() and not exported:
        return ops.act_dropout(x, bias, residual, act, arguments, p, seed)[0]
    if exported or needs_composition():
        return eager.act_dropout(x, bias, residual, act=act, act_kwargs=act_kwargs, p=p, seed=seed)
    try:
        return _C.act_dropout(x, bias, residual, act, arguments, p, seed)
    except TypeError:
        check_types("act_dropout", {"x": x, "bias": bias, "residual": residual}, {"p": p})
        raise
