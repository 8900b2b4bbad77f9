"""Batch normalisation, an activation and max-pooling, as in the stem of a residual network."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _C, eager
from ._arguments import activation_arguments
from ._batch_norm_act import batch_norm_act, check_batch_norm_act, counted
from ._route import Route, is_dynamo_compiling, ops, otherwise

Pair = int | Sequence[int]

MAX_PLACES = 256  # positions in a window that one byte can number


def batch_norm_act_max_pool2d(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
    act: str = "relu",
    act_kwargs: Mapping[str, float] | None = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    num_batches_tracked: Tensor | None = None,
) -> Tensor:
    """Equivalent to `F.max_pool2d(act(F.batch_norm(input, …)), kernel_size, stride, padding, dilation, ceil_mode)`.

    The stem of a residual network (He et al., "Deep residual learning for image recognition", 2016), whose tensor is
    the network's largest: one pass over memory for the statistics and one for the rest. Kept for backward: the input,
    two values per channel, and one byte per element of the result for the maximum's position in its window. As in
    stock, the first of equal maxima counts; half types are compared before rounding.

    Windows of more than 256 positions, which do not fit the byte, and padded windows whose dilation is larger than the
    image are pooled by stock after `batch_norm_act`.

    Args:
        input: (N, C, H, W); float32, float64, bfloat16 or float16. Contiguous and channels-last memory are used as they
            are; other strides cost one copy.
        running_mean: (C,), or None. As in `batch_norm_act`, like `running_var`, `weight`, `bias` and the dtypes.
        running_var: (C,), or None. The moving average of the unbiased variance.
        weight: (C,), or None for 1.
        bias: (C,), or None for 0.
        kernel_size: of a window: one number, or one for rows and one for columns; so are the next three.
        stride: distance between windows; None for `kernel_size`.
        padding: positions around the image that are never the maximum; at most half of `kernel_size`.
        dilation: distance between the positions of a window.
        ceil_mode: round the number of windows up instead of down.
        act: one of `ACTIVATIONS`, applied before pooling.
        act_kwargs: parameters of the activation.
        training: normalise with the statistics of this batch, otherwise with the running statistics.
        momentum: weight of the batch in the running statistics, or None for a cumulative average.
        eps: added to the variance.
        num_batches_tracked: int64 scalar that counts the batches in training, or None.

    Returns:
        A tensor of shape (N, C, windows in a column, windows in a row), of `input`'s dtype and memory format.

    Raises:
        ValueError: `input` does not have 4 dimensions; also as in `batch_norm_act`.
        TypeError: `input` is not a tensor; a window argument is not an integer; also as in `batch_norm_act`.
        RuntimeError: `F.max_pool2d` does not take the windows, or they do not fit into the image; the image is empty;
            a tensor's shape, dtype or device does not match `input`; evaluation without running statistics.
    """
    tensors = (input, running_mean, running_var, weight, bias)
    settings = (act, act_kwargs, training, momentum, eps, num_batches_tracked)
    y = None
    if not is_dynamo_compiling():
        windows = pool_arguments(kernel_size, stride, padding, dilation, ceil_mode)
        if isinstance(input, Tensor) and _fits_a_byte(input, *windows[:4]):
            y = _C.batch_norm_act_max_pool2d(*tensors, *windows, *settings)
    if y is not None:
        return y
    return otherwise(_ROUTE, *tensors, kernel_size, stride, padding, dilation, ceil_mode, *settings)


Windows = tuple[list[int], list[int], list[int], list[int], bool]


def pool_arguments(kernel_size: Pair, stride: Pair | None, padding: Pair, dilation: Pair, ceil_mode: bool) -> Windows:
    """The windows as the operators take them: pairs of (rows, columns).

    Raises:
        TypeError: a value is not an integer; `ceil_mode` is not a bool.
        RuntimeError: an argument does not consist of one or two integers.
    """
    if not isinstance(ceil_mode, bool):
        raise TypeError(f"ceil_mode must be bool, not {type(ceil_mode).__name__}")
    kernel = _pair("kernel_size", kernel_size)
    omitted = stride is None or (isinstance(stride, (list, tuple)) and len(stride) == 0)
    strides = kernel if omitted else _pair("stride", stride)
    return kernel, strides, _pair("padding", padding), _pair("dilation", dilation), ceil_mode


def _pair(name: str, value: Any) -> list[int]:
    if type(value) is int:
        return [value, value]
    numbers = list(value) if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else [value]
    integers = [_integer(name, number) for number in numbers]
    if len(integers) not in (1, 2):
        raise RuntimeError(f"{name} must be an int or a pair of ints, got {len(integers)} of them")
    return integers * (3 - len(integers))


def _integer(name: str, number: Any) -> Any:
    if type(number) is int or isinstance(number, torch.SymInt):
        return number
    if isinstance(number, bool) or not hasattr(number, "__index__"):
        raise TypeError(f"{name} must be an int or a pair of ints, not {type(number).__name__}")
    return operator.index(number)


def _fits_a_byte(input: Tensor, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int]) -> bool:
    """Whether a byte can number the positions of a window and every window has an element.

    May be True for invalid windows, which are checked elsewhere.
    """
    if kernel[0] * kernel[1] > MAX_PLACES:
        return False
    if input.dim() != 4 or dilation == [1, 1] or padding == [0, 0]:
        return True
    return all(p == 0 or d <= size for p, d, size in zip(padding, dilation, input.shape[2:], strict=True))


def _check_windows(input: Tensor, windows: Windows) -> None:
    """Raises stock's errors before any running statistic has changed."""
    if input.dim() != 4:
        raise ValueError(f"input has {input.dim()} dimensions; it takes 4, (N, C, H, W)")
    F.max_pool2d(torch.empty(input.shape, device="meta"), *windows)


def _windows(
    kernel_size: Pair, stride: Pair | None, padding: Pair, dilation: Pair, ceil_mode: bool, **others: Any
) -> tuple[Windows, dict[str, Any]]:
    """Splits the arguments into the windows and those of `batch_norm_act`."""
    return pool_arguments(kernel_size, stride, padding, dilation, ceil_mode), others


def _check(**arguments: Any) -> None:
    _, others = _windows(**arguments)
    check_batch_norm_act(**others)


def _pooled_by_stock(**arguments: Any) -> Tensor | None:
    """Stock's result if the kernels do not support these windows, else None."""
    windows, others = _windows(**arguments)
    if _fits_a_byte(others["input"], *windows[:4]):
        return None
    _check_windows(others["input"], windows)
    return F.max_pool2d(batch_norm_act(**others), *windows)


def _operator(**arguments: Any) -> Tensor:
    windows, others = _windows(**arguments)
    others["act_args"] = activation_arguments(others["act"], others.pop("act_kwargs"))
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    others |= dict(zip(names, windows, strict=True))
    return counted(ops.batch_norm_act_max_pool2d, others.pop("input"), others)[0]


def _composition(**arguments: Any) -> Tensor:
    windows, others = _windows(**arguments)
    _check_windows(others["input"], windows)
    return eager.batch_norm_act_max_pool2d(windows=windows, **others)


def _stock(**arguments: Any) -> Tensor:
    windows, others = _windows(**arguments)
    return eager.batch_norm_act_max_pool2d(windows=windows, **others)


_ROUTE = Route(
    batch_norm_act_max_pool2d,
    ("input", "running_mean", "running_var", "weight", "bias"),
    check=_check,
    operator=_operator,
    composition=_composition,
    stock=_stock,
    numbers=("eps",),
    optional_numbers=("momentum",),
    shortcut=_pooled_by_stock,
    is_exported=lambda training, **others: not training,
)
