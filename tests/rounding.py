"""Comparison with a float64 reference, with a bound derived from rounding errors."""

from __future__ import annotations

import torch
from torch import Tensor

# Rounding errors of the arithmetic type allowed per result: an elementary function in fp32 is accurate to about 4, the
# normalisation before it adds as many, and the backward formula has four terms.
ROUNDINGS = 16

HALF_TYPES = (torch.bfloat16, torch.float16)


def arithmetic_type(dtype: torch.dtype) -> torch.dtype:
    """The type that a kernel computes in: fp32 for the half types."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def assert_rounds_to(
    actual: Tensor,
    expected: Tensor,
    *,
    scale: float | Tensor | None = None,
    inexact: float = 0.0,
    name: str = "result",
) -> None:
    """Asserts that `actual` equals `expected` up to one rounding at the store and `ROUNDINGS` in the arithmetic.

    Args:
        actual: the computed values, of any floating dtype.
        expected: the reference in float64, of the same shape.
        scale: magnitude of the terms that were summed; by default the largest expected value.
        inexact: additional relative error of these terms, if they were read from a rounded tensor.
        name: what is compared, for the message.
    """
    assert actual.shape == expected.shape, f"{name}: shape {tuple(actual.shape)}, not {tuple(expected.shape)}"
    actual, expected = actual.detach().cpu(), expected.detach().cpu()
    scale = scale.cpu() if isinstance(scale, Tensor) else scale
    assert expected.dtype is torch.float64
    representable = expected.to(actual.dtype)
    finite = representable.isfinite()
    torch.testing.assert_close(actual[~finite], representable[~finite], rtol=0, atol=0, equal_nan=True)
    if not finite.any():
        return
    store, arithmetic = torch.finfo(actual.dtype), torch.finfo(arithmetic_type(actual.dtype))
    if scale is None:
        scale = expected[finite].abs().max()
    bound = expected.abs() * (store.eps / 2) + scale * (ROUNDINGS * arithmetic.eps + inexact)
    error = (actual.double() - expected).abs()
    # fp32 arithmetic may flush subnormals to zero; the store may not.
    bound = bound + store.smallest_normal * store.eps / 2 + arithmetic.smallest_normal
    wrong = finite & ~(error <= bound)
    if wrong.any():
        at = tuple(int(i) for i in wrong.nonzero()[0])
        raise AssertionError(
            f"{name}: {int(wrong.sum())} of {wrong.numel()} elements off; the first at {at}: "
            f"{actual[at].item()!r}, not {expected[at].item()!r}"
        )
