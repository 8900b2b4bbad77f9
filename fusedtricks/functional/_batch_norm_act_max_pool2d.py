"""Batch normalisation, an activation and max-pooling: the stem of a residual network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _C, eager
from ._arguments import activation_arguments
from ._batch_norm_act import batch_norm_act, check_batch_norm_act
from ._route import Route, is_dynamo_compiling, ops, otherwise

Pair = int | Sequence[int]

MAX_PLACES = 256  # of a window, that one byte tells apart


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
    the network's largest, in one sweep over memory after the one for the statistics. For backward the input is kept,
    two values per channel and one byte per element of the result: which place of its window the maximum was at. As in
    stock it is the first of equal maxima; half types are compared before they are rounded.

    A window of more than 256 places, which do not fit the byte, and padded windows whose dilation is larger than the
    image are pooled by stock, after `batch_norm_act`.

    Args:
        input: (N, C, H, W), float32, float64, bfloat16 or float16. Contiguous and channels-last memory are both taken
            as they are; other strides cost one copy.
        running_mean: as of `batch_norm_act`, and so are the arguments that are not named here.
        running_var: of the unbiased variance.
        weight: (C,), or None for 1.
        bias: (C,), or None for 0.
        kernel_size: of a window: one number, or one for rows and one for columns, as the three that follow.
        stride: from one window to the next; None for `kernel_size`.
        padding: places around the image that never are the maximum; at most half of `kernel_size`.
        dilation: from one place of a window to the next.
        ceil_mode: round the number of windows up instead of down.
        act: one of `ACTIVATIONS`, applied before pooling.
        act_kwargs: its parameters.
        training: normalise with the statistics of this batch, else with the running ones.
        momentum: weight of the batch in the running statistics, or None for a cumulative average.
        eps: added to the variance.
        num_batches_tracked: int64 scalar that counts the batches in training, or None.

    Returns:
        A tensor of shape (N, C, windows in a column, windows in a row), of `input`'s dtype and memory format.

    Raises:
        ValueError: `input` of another number of dimensions; else as `batch_norm_act`.
        TypeError: `input` is not a tensor; windows not given by integers; as `batch_norm_act`.
        NotImplementedError: `input` of another dtype, or on a device without a backend.
        RuntimeError: windows that `F.max_pool2d` does not take, or that do not fit into the image; an empty image; a
            tensor whose shape, dtype or device does not fit `input`; evaluation without running statistics.
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
    """The windows as operators take them: a number for rows and one for columns each.

    Raises:
        TypeError: for what is no integer; `ceil_mode` that is no bool.
        RuntimeError: for more integers than two.
    """
    if not isinstance(ceil_mode, bool):
        raise TypeError(f"ceil_mode must be bool, not {type(ceil_mode).__name__}")
    kernel = _pair("kernel_size", kernel_size)
    omitted = stride is None or (isinstance(stride, Sequence) and len(stride) == 0)
    strides = kernel if omitted else _pair("stride", stride)
    return kernel, strides, _pair("padding", padding), _pair("dilation", dilation), ceil_mode


def _pair(name: str, value: Any) -> list[int]:
    numbers = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, (int, torch.SymInt)):
            raise TypeError(f"{name} must be an int or a pair of ints, not {type(number).__name__}")
    if len(numbers) not in (1, 2):
        raise RuntimeError(f"{name} must be an int or a pair of ints, got {len(numbers)} of them")
    return numbers * (3 - len(numbers))


def _fits_a_byte(input: Tensor, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int]) -> bool:
    """Whether a byte holds every place of a window, and every window has an element; also where it has mistakes."""
    if kernel[0] * kernel[1] > MAX_PLACES:
        return False
    if input.dim() != 4 or dilation == [1, 1] or padding == [0, 0]:
        return True
    return all(p == 0 or d <= size for p, d, size in zip(padding, dilation, input.shape[2:], strict=True))


def _check_windows(input: Tensor, windows: Windows) -> None:
    """The errors of stock, before any running statistic has changed."""
    if input.dim() != 4:
        raise ValueError(f"input has {input.dim()} dimensions; it takes 4, (N, C, H, W)")
    F.max_pool2d(torch.empty(input.shape, device="meta"), *windows)


def _windows(
    kernel_size: Pair, stride: Pair | None, padding: Pair, dilation: Pair, ceil_mode: bool, **others: Any
) -> tuple[Windows, dict[str, Any]]:
    """The windows, and the other arguments: those of `batch_norm_act`."""
    return pool_arguments(kernel_size, stride, padding, dilation, ceil_mode), others


def _check(**arguments: Any) -> None:
    _, others = _windows(**arguments)
    check_batch_norm_act(**others)


def _pooled_by_stock(**arguments: Any) -> Tensor | None:
    """The result where the kernels have no place for a window's maximum."""
    windows, others = _windows(**arguments)
    if _fits_a_byte(others["input"], *windows[:4]):
        return None
    _check_windows(others["input"], windows)
    return F.max_pool2d(batch_norm_act(**others), *windows)


def _operator(**arguments: Any) -> Tensor:
    windows, others = _windows(**arguments)
    act_args = activation_arguments(others["act"], others.pop("act_kwargs"))
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    return ops.batch_norm_act_max_pool2d(**others, act_args=act_args, **dict(zip(names, windows, strict=True)))[0]


def _composition(**arguments: Any) -> Tensor:
    windows, others = _windows(**arguments)
    _check_windows(others["input"], windows)
    return eager.batch_norm_act_max_pool2d(windows=windows, **others)


_ROUTE = Route(
    batch_norm_act_max_pool2d,
    ("input", "running_mean", "running_var", "weight", "bias"),
    check=_check,
    operator=_operator,
    composition=_composition,
    shortcut=_pooled_by_stock,
    is_exported=lambda training, **others: not training,
)
