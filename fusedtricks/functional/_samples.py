"""Selects samples of a batch for a branch, and adds the branch's results back to the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .. import _C, eager
from ._arguments import check_tensors
from ._route import Route, is_dynamo_compiling, ops, otherwise


def add_samples(input: Tensor, rows: Tensor, index: Tensor, scale: float = 1.0) -> Tensor:
    r"""Equivalent to `input.index_add(0, index, rows, alpha=scale)`, for an index without duplicates.

    Every sample is either copied or added to, in one pass. In backward, `input` gets the gradient unchanged, and `rows`
    get their samples of it, scaled, in one pass. Only the index is kept.

    Args:
        input: (N, \*); float32, float64, bfloat16 or float16. Contiguous and channels-last memory are used as they are;
            other strides cost one copy.
        rows: (n, \*), of `input`'s dtype and device.
        index: (n,), int64 or int32: the sample each row is added to, all different, from 0 to N - 1. The CPU checks
            this. On a GPU the check would make the host wait, so rows with an index outside the batch are ignored, and
            of rows with the same index only one is added.
        scale: factor for the rows.

    Returns:
        A tensor of `input`'s shape, dtype and memory format.

    Raises:
        IndexError: an index is outside the batch (CPU); `input` has no dimensions.
        ValueError: an index occurs twice (CPU).
        TypeError: an argument is not a tensor.
        RuntimeError: the tensors' shapes, dtypes or devices do not match.
    """
    y = None if is_dynamo_compiling() else _C.add_samples(input, rows, index, scale)
    return otherwise(_ADD, input, rows, index, scale) if y is None else y


def select_samples(input: Tensor, index: Tensor) -> Tensor:
    """Equivalent to `input.index_select(0, index)`, for an index without duplicates.

    Backward writes the gradient in one pass: each sample is copied or zero. Only the index is kept.

    Args:
        input: as in `add_samples`.
        index: as in `add_samples`. On a GPU an index outside the batch gives NaN.

    Returns:
        The samples, in `input`'s dtype and memory format.

    Raises:
        As in `add_samples`.
    """
    y = None if is_dynamo_compiling() else _C.select_samples(input, index)
    return otherwise(_SELECT, input, index) if y is None else y


def branch_samples(input: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Equivalent to `(input.index_select(0, index), input)`: the inputs of a branch and of the skip connection.

    Pass the second result to `add_samples` as its first argument: then backward adds the branch's gradient to that of
    the skip connection in one pass. With `select_samples`, autograd would add a gradient that is mostly zeros. The
    second result shares `input`'s memory. Arguments and errors: see `select_samples`.
    """
    results = None if is_dynamo_compiling() else _C.branch_samples(input, index)
    return otherwise(_BRANCH, input, index) if results is None else results


def _check(op: str) -> Callable[..., None]:
    def check(scale: float = 1.0, **tensors: Any) -> None:
        for name, value in tensors.items():
            check_tensors(op, **{name: value})

    return check


_ADD = Route(
    add_samples,
    ("input", "rows", "index"),
    check=_check("add_samples"),
    operator=lambda input, rows, index, scale: ops.add_samples(input, rows, index, scale),
    composition=eager.add_samples,
    numbers=("scale",),
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
