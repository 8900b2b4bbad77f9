"""The end of a layer: bias, activation, dropout and residual."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .. import _C, eager
from ._arguments import activation_arguments, check_dropout, check_tensors, signed_seed
from ._route import Route, is_dynamo_compiling, ops, otherwise


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
    r"""Equivalent to `F.dropout(act(x + bias), p, training) + residual`, with different random numbers.

    One pass over memory forward and one backward, which also sums the bias's gradient. The mask is the same as in
    `dropout`: a function of the seed and each element's logical index.

    Kept for backward: for relu without a residual only the result, which shows both what was dropped and the
    derivative; for the identity only the seed; otherwise the seed and one tensor. That is the result (which the next
    layer keeps anyway) if the derivative can be computed from it and there is no residual, else `x`.

    Args:
        x: any shape; float32, float64, bfloat16 or float16. Contiguous and channels-last memory are used as they are;
            other strides cost one copy.
        bias: (F,) for the last dimension of x, as after a linear layer; (C, 1, …, 1) with as many dimensions as a
            sample, for the channels of an (N, C, \*) tensor; or None. In x's dtype; for half types also float32.
        residual: added last; of x's shape, dtype and device (under autocast any dtype), or None.
        act: one of `ACTIVATIONS`.
        act_kwargs: parameters of the activation, for example `{"negative_slope": 0.2}` for `"leaky_relu"`.
        p: probability of *dropping* a value, in [0, 1].
        training: apply dropout; otherwise compute `act(x + bias) + residual`.
        seed: 64-bit seed of the mask. None draws one from torch's generator if there is anything to drop.

    Returns:
        A tensor of x's shape, dtype and memory format.

    Raises:
        ValueError: unknown `act`; `p` outside [0, 1] or NaN; `seed` does not fit 64 bits.
        TypeError: `x` is not a tensor; `act_kwargs` that the activation does not take.
        RuntimeError: the shape, dtype or device of the bias or residual does not match `x`.
    """
    arguments = (x, bias, residual, act, act_kwargs, p, training, seed)
    y = None if is_dynamo_compiling() else _C.act_dropout(*arguments)
    return otherwise(_ROUTE, *arguments) if y is None else y


def _check(x: Any, bias: Any, residual: Any, act: Any, act_kwargs: Any, p: Any, training: Any, seed: Any) -> None:
    activation_arguments(act, act_kwargs)
    check_dropout(p)
    signed_seed(seed)
    check_tensors("act_dropout", x=x, bias=bias, residual=residual)


def _operator(
    x: Tensor,
    act: str,
    act_kwargs: Mapping[str, float] | None,
    p: float,
    training: bool,
    seed: int | None,
    **tensors: Tensor | None,
) -> Tensor:
    parameters = activation_arguments(act, act_kwargs)
    p = p if training else 0.0
    return ops.act_dropout(x, **tensors, act=act, act_args=parameters, p=p, seed=signed_seed(seed))[0]


_ROUTE = Route(
    act_dropout,
    ("x", "bias", "residual"),
    check=_check,
    operator=_operator,
    composition=eager.act_dropout,
    numbers=("p",),
    is_exported=lambda p, training, **others: p == 0 or not training,
)
