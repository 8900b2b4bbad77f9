"""DropConnect: linear layers and convolutions with dropped weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from .. import _C, eager
from ._arguments import check_dropout, check_tensors, signed_seed
from ._forked import on_one_thread_if_forked
from ._route import Route, is_dynamo_compiling, ops, otherwise

Sizes = int | Sequence[int]


def drop_connect_linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    p: float = 0.5,
    training: bool = True,
    *,
    seed: int | None = None,
) -> Tensor:
    r"""Equivalent to `F.linear(input, dropout(weight, p, training, seed=seed), bias)`, with this package's `dropout`.

    DropConnect (Wan et al., 2013): in training, weights are zeroed with probability `p` and the others divided by
    1 - p; in evaluation the weights are used unchanged. The whole mini-batch shares one mask, the same bit for bit as
    that of `dropout`; the paper draws one per example, which needs a separate matrix product for each. The bias is not
    dropped.

    Kept for backward: the input, the weight itself and a seed. Backward recomputes the mask and the dropped weight.

    Args:
        input: (\*, in_features); float32, float64, bfloat16 or float16.
        weight: (out_features, in_features).
        bias: (out_features,), or None.
        p: probability of *dropping* a weight, in [0, 1].
        training: drop weights; otherwise only the linear layer.
        seed: 64-bit seed of the mask. None draws one from torch's generator (see `torch.manual_seed`).

    Returns:
        (\*, out_features), in `input`'s dtype; under autocast in autocast's dtype, like `F.linear`.

    Raises:
        ValueError: `p` outside [0, 1] or NaN; `seed` does not fit 64 bits.
        TypeError: `input` or `weight` is not a tensor.
        RuntimeError: the tensors' shapes, dtypes or devices do not match.
    """
    y = None
    if training is True and p and not is_dynamo_compiling():
        y = _C.drop_connect_linear(input, weight, bias, p, seed)
    return otherwise(_LINEAR, input, weight, bias, p, training, seed) if y is None else y


def _check_linear(input: Any, weight: Any, bias: Any, p: Any, training: Any, seed: Any) -> None:
    check_dropout(p)
    signed_seed(seed)
    check_tensors("drop_connect_linear", input=input)
    check_tensors("drop_connect_linear", weight=weight, bias=bias)


def _linear(
    input: Tensor, weight: Tensor, bias: Tensor | None, p: float, training: bool, seed: int | None
) -> Tensor | None:
    """Stock's result if nothing is dropped, else None."""
    return F.linear(input, weight, bias) if not training or p == 0 else None


def _linear_operator(
    input: Tensor, weight: Tensor, bias: Tensor | None, p: float, training: bool, seed: int | None
) -> Tensor:
    return ops.drop_connect_linear(input, weight, bias, p, signed_seed(seed))[0]


_LINEAR = Route(
    drop_connect_linear,
    ("input", "weight", "bias"),
    check=_check_linear,
    operator=_linear_operator,
    composition=lambda training, **others: eager.drop_connect_linear(**others),
    numbers=("p",),
    shortcut=_linear,
)


def drop_connect_conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: str | Sizes = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    p: float = 0.5,
    training: bool = True,
    *,
    seed: int | None = None,
) -> Tensor:
    """Equivalent to `F.conv1d(input, dropout(weight, p, training, seed=seed), bias, …)`; see `drop_connect_linear`.

    The mask drops weights of the filters: all positions and samples share it. The arguments before `p` are those of
    `F.conv1d`.

    Args:
        input: (N, C, L) or (C, L); float32, float64, bfloat16 or float16.
        weight: (out_channels, C / groups, kernel_size).
        bias: (out_channels,), or None.
        stride: of the filters.
        padding: zeros added on both sides, "valid" for none, or "same" for an output as long as the input.
        dilation: distance between a filter's elements.
        groups: number of channel groups convolved separately.
        p: probability of *dropping* a weight, in [0, 1].
        training: drop weights; otherwise only the convolution.
        seed: 64-bit seed of the mask, or None.

    Raises:
        As in `drop_connect_linear`; also RuntimeError for `padding="same"` with a stride.
    """
    return otherwise(_CONV1D, input, weight, bias, stride, padding, dilation, groups, p, training, seed)


def drop_connect_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: str | Sizes = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    p: float = 0.5,
    training: bool = True,
    *,
    seed: int | None = None,
) -> Tensor:
    """Equivalent to `F.conv2d(input, dropout(weight, p, training, seed=seed), bias, …)`; see `drop_connect_conv1d`."""
    return otherwise(_CONV2D, input, weight, bias, stride, padding, dilation, groups, p, training, seed)


def drop_connect_conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: str | Sizes = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    p: float = 0.5,
    training: bool = True,
    *,
    seed: int | None = None,
) -> Tensor:
    """Equivalent to `F.conv3d(input, dropout(weight, p, training, seed=seed), bias, …)`; see `drop_connect_conv1d`."""
    return otherwise(_CONV3D, input, weight, bias, stride, padding, dilation, groups, p, training, seed)


def _convolution(function: Callable[..., Tensor], n: int) -> Route:
    """The route of an n-dimensional convolution."""
    name = function.__name__

    def check(input: Any, weight: Any, bias: Any, p: Any, training: Any, seed: Any, **geometry: Any) -> None:
        check_dropout(p)
        signed_seed(seed)
        check_tensors(name, input=input)
        check_tensors(name, weight=weight, bias=bias)

    def stock(p: float, training: bool, seed: int | None, **arguments: Any) -> Tensor | None:
        return eager.CONVOLUTIONS[n](**arguments) if not training or p == 0 else None

    return Route(
        function,
        ("input", "weight", "bias"),
        check=check,
        operator=lambda training, **others: _convolve(name, n, **others),
        composition=lambda training, **others: eager.drop_connect_convolution(**others),
        numbers=("p",),
        shortcut=stock,
    )


_CONV1D, _CONV2D, _CONV3D = (
    _convolution(drop_connect_conv1d, 1),
    _convolution(drop_connect_conv2d, 2),
    _convolution(drop_connect_conv3d, 3),
)


def _convolve(
    name: str,
    n: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sizes,
    padding: str | Sizes,
    dilation: Sizes,
    groups: int,
    p: float,
    seed: int | None,
) -> Tensor:
    if input.dim() not in (n + 1, n + 2) or weight.dim() != n + 2:
        raise RuntimeError(
            f"{name}: input has shape {list(input.shape)}, weight {list(weight.shape)}; "
            f"both need {n + 2} dimensions, or input {n + 1} (unbatched)"
        )
    strides, dilations = _expanded(stride, n), _expanded(dilation, n)
    if isinstance(padding, str):
        input, paddings = _padded(input, padding, weight.shape[2:], strides, dilations)
    else:
        paddings = _expanded(padding, n)
    batch = input if input.dim() == n + 2 else input.unsqueeze(0)
    arguments = (batch, weight, bias, strides, paddings, dilations, groups, p, signed_seed(seed))
    y = None if is_dynamo_compiling() else _C.drop_connect_convolution(*arguments)
    result = ops.drop_connect_convolution(*arguments)[0] if y is None else y
    return result if batch is input else result.squeeze(0)


def _expanded(sizes: Sizes, n: int) -> list[int]:
    if isinstance(sizes, int):
        return [sizes] * n
    return [*sizes] * (n if len(sizes) == 1 else 1)


def _padded(
    input: Tensor, padding: str, kernel: Sequence[int], strides: list[int], dilations: list[int]
) -> tuple[Tensor, list[int]]:
    """The input and the symmetric padding for "valid" or "same"; as in stock, an odd zero is appended to the input."""
    if padding == "valid":
        return input, [0] * len(kernel)
    if padding != "same":
        raise RuntimeError(f"padding must be 'valid', 'same' or numbers, but got {padding!r}")
    if any(stride != 1 for stride in strides):
        raise RuntimeError("padding='same' is not supported for strided convolutions")
    totals = [dilation * (k - 1) for dilation, k in zip(dilations, kernel, strict=True)]
    if any(total % 2 for total in totals):
        input = F.pad(input, [side for total in reversed(totals) for side in (0, total % 2)])
    return input, [total // 2 for total in totals]


def drop_connect_moments(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, p: float = 0.5
) -> tuple[Tensor, Tensor]:
    r"""Mean and variance of `drop_connect_linear(input, weight, bias, p)` over random masks.

    Equivalent to `F.linear(x, w, bias), p / (1 - p) * F.linear(x * x, w * w)`. A unit is a sum of independent terms and
    therefore nearly Gaussian; the paper's inference draws from that Gaussian (Wan et al., 2013, section 3.2; there
    without the scale 1 / (1 - p) that training uses here). Differentiable.

    Args:
        input: (\*, in_features).
        weight: (out_features, in_features).
        bias: (out_features,), or None.
        p: probability of *dropping* a weight, in [0, 1).

    Returns:
        Both (\*, out_features). The mean in the dtype of `F.linear`; the variance in float32 for bfloat16 and float16,
        also under autocast, because squares leave their range.

    Raises:
        ValueError: `p` outside [0, 1).
        RuntimeError: the tensors' shapes, dtypes or devices do not match.
    """
    if has_torch_function_variadic(input, weight, bias):
        return handle_torch_function(drop_connect_moments, (input, weight, bias), input, weight, bias, p)
    return on_one_thread_if_forked(moments, F.linear, input, weight, bias, p)


def check_moments(p: float) -> None:
    """ValueError unless 0 <= p < 1."""
    check_dropout(p, "inverted")
    if p == 1:
        raise ValueError("p must be below 1: the moments are undefined when every weight is dropped")


def moments(
    product: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    p: float,
) -> tuple[Tensor, Tensor]:
    """`drop_connect_moments` for any product linear in input and in weight, for example a convolution."""
    check_moments(p)
    mean = product(input, weight, bias)
    dtype = torch.promote_types(torch.promote_types(input.dtype, weight.dtype), torch.float32)
    device = input.device.type
    with torch.autocast(device, enabled=False) if device in ("cpu", "cuda") else nullcontext():
        variance = product(input.to(dtype).square(), weight.to(dtype).square(), None) * (p / (1 - p))
    return mean, variance
