"""The operators written in stock PyTorch: what the kernels compute, in a few lines each.

Used where C++ autograd functions do not work (`torch.func` transforms, forward-mode differentiation), and as the basis
of the tests' reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

FORMULAS: dict[str, Callable[..., Tensor]] = {
    "identity": lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "selu": F.selu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": F.silu,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "hardsigmoid": lambda x: F.relu6(x + 3) / 6,
    "softplus": F.softplus,
}
"""Every activation by name; parameters are keyword arguments."""


def activation(input: Tensor, act: str, **act_kwargs: float) -> Tensor:
    """Applies the activation named `act`."""
    return FORMULAS[act](input, **act_kwargs)


def batch_norm_act(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    act: str = "relu",
    act_kwargs: Mapping[str, float] | None = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    num_batches_tracked: Tensor | None = None,
    p: float = 0.0,
    seed: int | None = None,
) -> Tensor:
    """dropout(act(batch_norm(input) + residual)), with the arguments of `fusedtricks.functional.batch_norm_act`."""
    count = num_batches_tracked if training else None
    factor = average_factor(momentum, count)
    z = F.batch_norm(input, running_mean, running_var, weight, bias, training, factor, eps)
    if count is not None:
        count.add_(1)
    if residual is not None:
        z = z + residual
    y = activation(z, act, **(act_kwargs or {}))
    return dropout(y, p, seed=seed) if training and p > 0 else y


def average_factor(momentum: float | None, count: Tensor | None) -> float:
    """The weight of the next batch in the running statistics. count: the batches before it."""
    if momentum is not None:
        return momentum
    return 0.0 if count is None else 1.0 / (float(count) + 1.0)


def batch_norm_act_max_pool2d(
    input: Tensor,
    *tensors: Tensor | None,
    windows: tuple[list[int], list[int], list[int], list[int], bool],
    **settings: Any,
) -> Tensor:
    """max_pool2d(act(batch_norm(input))).

    Tensors and settings are those of `batch_norm_act`; windows are in `F.max_pool2d`'s argument order.
    """
    statistics_and_parameters: Any = tensors
    return F.max_pool2d(batch_norm_act(input, *statistics_and_parameters, **settings), *windows)


def philox(seed: int, offset: int, counter: Tensor) -> Tensor:
    """The Philox4x32-10 blocks for int64 counters of shape (n,): int64 words of shape (n, 4)."""
    low = 0xFFFFFFFF
    c0, c1 = counter & low, (counter >> 32) & low
    c2, c3 = (torch.full_like(counter, word) for word in (offset & low, (offset >> 32) & low))
    k0, k1 = seed & low, (seed >> 32) & low
    for _ in range(10):
        (high0, low0), (high1, low1) = _widening_product(0xD2511F53, c0), _widening_product(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & low, (k1 + 0xBB67AE85) & low
    return torch.stack([c0, c1, c2, c3], dim=1)


def _widening_product(m: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """The high and low 32 bits of m * x for x < 2^32, without overflowing int64."""
    upper, lower = m * (x >> 16), m * (x & 0xFFFF)
    middle = upper + (lower >> 16)
    return middle >> 16, ((middle & 0xFFFF) << 16) | (lower & 0xFFFF)


def dropout_mask(input: Tensor, p: float, seed: int, offset: int = 0) -> Tensor:
    """True where an element is kept, that is where its word of the Philox stream is at least ceil(p 2^32)."""
    blocks = (input.numel() + 3) // 4
    words = philox(seed, offset, torch.arange(blocks, device=input.device)).flatten()[: input.numel()]
    return (words >= _threshold(p)).view(input.shape)


def _threshold(p: float) -> int:
    scaled = p * 2**32
    return int(scaled) + (scaled > int(scaled))


def _affine(p: float, mode: str) -> tuple[float, float, float]:
    """Scale and shift for kept values, and the value that replaces dropped ones."""
    kept = 1 - _threshold(p) / 2**32
    if mode == "classic" or kept == 0:
        return 1.0, 0.0, 0.0
    if mode == "inverted":
        return 1 / kept, 0.0, 0.0
    scale = (kept * (1 + (1 - kept) * SELU_LIMIT**2)) ** -0.5
    shift = -scale * (1 - kept) * SELU_LIMIT
    return scale, shift, scale * SELU_LIMIT + shift


SELU_LIMIT = -1.7580993408473766
"""The limit of SELU for x → -∞: -λα."""


def dropout(input: Tensor, p: float, *, seed: int | None = None, mode: str = "inverted") -> Tensor:
    """Dropout in training. Without a seed the mask is stock's, which `torch.vmap` can draw for each sample."""
    if seed is None and mode == "inverted":
        return F.dropout(input, p)
    return _dropped(input, _mask(input, p, seed), p, mode)


def act_dropout(
    x: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    act: str = "relu",
    act_kwargs: Mapping[str, float] | None = None,
    p: float = 0.0,
    training: bool = True,
    seed: int | None = None,
) -> Tensor:
    """dropout(act(x + bias)) + residual, with the arguments of `fusedtricks.functional.act_dropout`."""
    y = activation(x if bias is None else x + bias, act, **(act_kwargs or {}))
    y = dropout(y, p, seed=seed) if training and p > 0 else y
    return y if residual is None else y + residual


def feature_dropout(
    input: Tensor,
    residual: Tensor | None,
    mask_dims: int,
    p: float,
    *,
    seed: int | None = None,
    mode: str = "inverted",
) -> Tensor:
    """Dropout in training, with one mask value for each index of the first `mask_dims` dimensions."""
    values = input.new_ones(input.shape[:mask_dims] + (1,) * (input.dim() - mask_dims))
    y = _dropped(input, _mask(values, p, seed), p, mode)
    return y if residual is None else y + residual


def _mask(input: Tensor, p: float, seed: int | None) -> Tensor:
    return F.dropout(torch.ones_like(input), p) != 0 if seed is None else dropout_mask(input, p, seed)


def _dropped(input: Tensor, mask: Tensor, p: float, mode: str) -> Tensor:
    scale, shift, fill = _affine(p, mode)
    return torch.where(mask, input * scale + shift, fill)


def pool_samples(planes: int, rank: int, seed: int, device: torch.device) -> Tensor:
    """The random numbers of all planes, float64 (planes, rank) in [0, 1): words of the Philox stream over 2^32."""
    blocks = (planes * rank + 3) // 4
    words = philox(seed, 0, torch.arange(blocks, device=device)).flatten()[: planes * rank]
    return words.view(planes, rank).double() / 2**32


def fractional_max_pool(
    input: Tensor,
    kernel_size: Sequence[int],
    output_size: Sequence[int],
    *,
    samples: Tensor | None = None,
    seed: int | None = None,
    act: str = "identity",
    act_kwargs: Mapping[str, float] | None = None,
) -> tuple[Tensor, Tensor]:
    """act(F.fractional_max_pool2d(input)) or 3d, for batched input, and the indices.

    Windows derived from a seed are computed in float64 for every dtype; without a seed the windows are stock's.
    """
    rank = len(kernel_size)
    pool = F.fractional_max_pool2d_with_indices if rank == 2 else F.fractional_max_pool3d_with_indices
    searched = input.detach()
    if samples is None and seed is not None:
        samples = pool_samples(input.shape[0] * input.shape[1], rank, seed, input.device)
        samples = samples.view(*input.shape[:2], rank)
        searched = searched.double()
    _, indices = pool(searched, tuple(kernel_size), tuple(output_size), _random_samples=samples)
    maxima = _positions_in_one(input).gather(2, _positions_in_one(indices)).view(indices.shape)
    return activation(maxima, act, **(act_kwargs or {})), indices


def _positions_in_one(input: Tensor) -> Tensor:
    """(N, C, *) as (N, C, positions); a reshape, which `torch.autograd.functional.jacobian` can vectorise."""
    return input.reshape(*input.shape[:2], math.prod(input.shape[2:]))


CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
"""The convolution functions, keyed by the number of spatial dimensions."""


def drop_connect_linear(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, p: float = 0.5, *, seed: int | None = None
) -> Tensor:
    """A linear layer with dropped weights, in training."""
    return F.linear(input, dropout(weight, p, seed=seed), bias)


def drop_connect_convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    p: float = 0.5,
    *,
    seed: int | None = None,
) -> Tensor:
    """A convolution with dropped weights, in training; the weight's shape says whether it is 1d, 2d or 3d."""
    convolution = CONVOLUTIONS[weight.dim() - 2]
    return convolution(input, dropout(weight, p, seed=seed), bias, stride, padding, dilation, groups)


def add_samples(input: Tensor, rows: Tensor, index: Tensor, scale: float = 1.0) -> Tensor:
    """input with scale * rows added to the samples at `index`."""
    return input.index_add(0, index, rows, alpha=scale)


def select_samples(input: Tensor, index: Tensor) -> Tensor:
    """The samples at `index`."""
    return input.index_select(0, index)
