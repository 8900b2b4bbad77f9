"""Some samples of a batch through a branch, and back into the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .. import _C, eager
from ._arguments import check_types
from ._route import Route, is_dynamo_compiling, ops, otherwise


def add_samples(input: Tensor, rows: Tensor, index: Tensor, scale: float = 1.0) -> Tensor:
    r"""Equivalent to `input.index_add(0, index, rows, alpha=scale)`, for an index without repetition.

    Every sample is copied or added to, in one pass. Backward gives `input` the gradient as it is, and `rows` their
    samples of it, scaled, in one pass. The index alone is kept.

    Args:
        input: (N, \*), float32, float64, bfloat16 or float16. Contiguous and channels-last memory are both taken as
            they are; other strides cost one copy.
        rows: (n, \*), of `input`'s dtype and device.
        index: (n,), int64 or int32: which sample each row is added to. All different, from 0 to N - 1. The CPU checks
            that; a GPU, where the host would have to wait, leaves out what lies outside, and of rows with the same
            number it adds one.
        scale: what the rows are multiplied by.

    Returns:
        A tensor of `input`'s shape, dtype and memory format.

    Raises:
        IndexError: a number outside the batch (CPU); `input` without dimensions.
        ValueError: a number given twice (CPU).
        TypeError: an argument that is not a tensor.
        NotImplementedError: `input` of another dtype, or on a device without a backend.
        RuntimeError: tensors whose shape, dtype or device do not fit each other.
    """
    y = None if is_dynamo_compiling() else _C.add_samples(input, rows, index, scale)
    return otherwise(_ADD, input, rows, index, scale) if y is None else y


def select_samples(input: Tensor, index: Tensor) -> Tensor:
    """Equivalent to `input.index_select(0, index)`, for an index without repetition.

    Backward writes the gradient in one pass: each sample is copied or zero. The index alone is kept.

    Args:
        input: as that of `add_samples`.
        index: as that of `add_samples`. On a GPU a number outside the batch gives NaN.

    Returns:
        A tensor of the samples, of `input`'s dtype and memory format.

    Raises:
        As `add_samples`.
    """
    y = None if is_dynamo_compiling() else _C.select_samples(input, index)
    return otherwise(_SELECT, input, index) if y is None else y


def branch_samples(input: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Equivalent to `(input.index_select(0, index), input)`: the way into a branch, and the way past it.

    For the second one's use as the first argument of `add_samples`: backward adds the gradient of the branch to that of
    the skip connection in one pass, where select_samples would write a gradient of zeros for autograd to add. The
    second result shares `input`'s memory. Arguments and errors: `select_samples`.
    """
    results = None if is_dynamo_compiling() else _C.branch_samples(input, index)
    return otherwise(_BRANCH, input, index) if results is None else results


def _check(op: str) -> Callable[..., None]:
    def check(scale: Any = 1.0, **tensors: Any) -> None:
        for name, value in tensors.items():
            check_types(op, {name: value}, {"scale": scale})

    return check


_ADD = Route(
    add_samples,
    ("input", "rows", "index"),
    check=_check("add_samples"),
    operator=lambda input, rows, index, scale: ops.add_samples(input, rows, index, scale),
    composition=eager.add_samples,
)
_SELECT = Route(
    select_samples,
    ("input", "index"),
    check=_check("select_samples"),
    operator=lambda input, index: ops.select_samples(input, index, 1.0),
    composition=eager.select_samples,
)
_BRANCH = Route(
    branch_samples,
    ("input", "index"),
    check=_check("branch_samples"),
    operator=lambda input, index: ops.branch_samples(input, index),
    composition=lambda input, index: (eager.select_samples(input, index), input),
)
