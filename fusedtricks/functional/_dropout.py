"""Dropout."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from .. import _C, eager
from ._calls import check_types, needs_composition, ops, signed_seed


def check_dropout(p: float, mode: str = "inverted") -> None:
    """ValueError unless 0 <= p <= 1 and the mode is known; TypeError where p is no number."""
    check_types("dropout", {}, {"p": p})
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
    if mode not in ("inverted", "classic"):
        raise ValueError(f"mode has to be 'inverted' or 'classic', but got {mode!r}")


def drop(op: str, input: Tensor, p: float, mode: str, seed: int | None, inplace: bool) -> Tensor:
    """Drops elements by the operator, whose mode may also be "alpha"."""
    seed = signed_seed(seed)
    if torch.compiler.is_compiling():
        if not inplace:
            return ops.dropout(input, p, mode, seed)[0]
        ops.dropout_(input, p, mode, seed)
        return input
    if needs_composition():
        result = eager.dropout(input, p, seed=seed, mode=mode)
        return input.copy_(result) if inplace else result
    try:
        return _C.dropout(input, p, mode, seed, inplace)
    except TypeError:
        check_types(op, {"input": input}, {"p": p})
        raise


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
    return drop("dropout", input, p, mode, seed, inplace)
