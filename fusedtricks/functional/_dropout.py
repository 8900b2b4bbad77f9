"""Dropout."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from .. import _C, eager
from ._arguments import check_dropout, check_tensors, signed_seed
from ._route import Route, is_dynamo_compiling, ops, otherwise


def dropout(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    seed: int | None = None,
    mode: str = "inverted",
) -> Tensor:
    """Equivalent to `F.dropout(input, p, training, inplace)`, with different random numbers.

    Inverted dropout (Srivastava et al., 2014): in training, values are zeroed with probability `p` and the others
    divided by 1 - p; in evaluation the input is returned. `mode="classic"` is the original form of that paper and the
    lecture: training does not divide, evaluation multiplies by 1 - p. (The lecture's p is that of *keeping* a value.)

    The mask depends only on the seed and each element's logical index (Philox4x32-10, Salmon et al., 2011): it is the
    same for every memory format, dtype, number of threads and device, and when it is recomputed. Only the seed is kept
    for backward.

    Args:
        input: any shape; float32, float64, bfloat16 or float16.
        p: probability of *dropping* a value, in [0, 1].
        training: apply dropout; otherwise behave as in evaluation.
        inplace: write the result over `input`.
        seed: 64-bit seed of the mask. None draws one from torch's generator (see `torch.manual_seed`).
        mode: "inverted" or "classic".

    Returns:
        A tensor like `input`; `input` itself if `inplace` or if there is nothing to do.

    Raises:
        ValueError: `p` outside [0, 1] or NaN; unknown `mode`; `seed` does not fit 64 bits.
        TypeError: `input` is not a tensor.
        RuntimeError: `inplace` on a leaf that requires grad.
    """
    y = None
    if training is True and mode in ("inverted", "classic") and not is_dynamo_compiling():
        y = _C.dropout(input, p, mode, seed, inplace)
    return otherwise(_ROUTE, input, p, training, inplace, seed, mode) if y is None else y


def drop_by_operator(input: Tensor, p: float, mode: str, seed: int | None, inplace: bool) -> Tensor:
    """Calls the operator; its mode may also be "alpha"."""
    if not inplace:
        return ops.dropout(input, p, mode, signed_seed(seed))[0]
    ops.dropout_(input, p, mode, signed_seed(seed))
    return input


def drop_by_composition(input: Tensor, p: float, mode: str, seed: int | None, inplace: bool) -> Tensor:
    """The same with stock PyTorch's operators."""
    result = eager.dropout(input, p, seed=seed, mode=mode)
    return input.copy_(result) if inplace else result


def _check(input: Any, p: Any, training: Any, inplace: Any, seed: Any, mode: Any) -> None:
    check_dropout(p, mode)
    signed_seed(seed)
    check_tensors("dropout", input=input)


def _undropped(input: Tensor, p: float, training: bool, inplace: bool, seed: int | None, mode: str) -> Tensor | None:
    if p == 0 or (not training and mode == "inverted"):
        return input
    if training:
        return None
    return input.mul_(1 - p) if inplace else input * (1 - p)


def _stock(input: Tensor, p: float, training: bool, inplace: bool, seed: int | None, mode: str) -> Tensor:
    if seed is None and mode == "inverted":
        return F.dropout(input, p, training, inplace)
    return drop_by_composition(input, p, mode, seed, inplace)


_ROUTE = Route(
    dropout,
    ("input",),
    check=_check,
    operator=lambda training, **others: drop_by_operator(**others),
    composition=lambda training, **others: drop_by_composition(**others),
    stock=_stock,
    numbers=("p",),
    shortcut=_undropped,
)
