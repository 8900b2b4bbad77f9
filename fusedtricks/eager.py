"""The operators composed of stock PyTorch: what the kernels compute, in a few lines each.

Used where a C++ autograd function cannot take part (`torch.func` transforms, forward-mode differentiation), and the
base of the tests' reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

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
    "softplus": F.softplus,
}
"""Every activation by name; parameters are keyword arguments."""


def activation(input: Tensor, act: str, **act_kwargs: float) -> Tensor:
    """The activation of that name."""
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
    if training and running_mean is not None and num_batches_tracked is not None:
        num_batches_tracked.add_(1)
        momentum = 1.0 / float(num_batches_tracked) if momentum is None else momentum
    factor = 0.0 if momentum is None else momentum
    z = F.batch_norm(input, running_mean, running_var, weight, bias, training, factor, eps)
    if residual is not None:
        z = z + residual
    y = activation(z, act, **(act_kwargs or {}))
    return dropout(y, p, seed=seed) if training and p > 0 else y


def philox(seed: int, offset: int, counter: Tensor) -> Tensor:
    """The Philox4x32-10 blocks of int64 counters of shape (n,): int64 words of shape (n, 4)."""
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
    """The high and low 32 bits of m * x, where x < 2^32 and int64 would overflow."""
    upper, lower = m * (x >> 16), m * (x & 0xFFFF)
    middle = upper + (lower >> 16)
    return middle >> 16, ((middle & 0xFFFF) << 16) | (lower & 0xFFFF)


def dropout_mask(input: Tensor, p: float, seed: int, offset: int = 0) -> Tensor:
    """True where an element is kept: its word of the Philox stream is at least ceil(p 2^32)."""
    blocks = (input.numel() + 3) // 4
    words = philox(seed, offset, torch.arange(blocks, device=input.device)).flatten()[: input.numel()]
    return (words >= _threshold(p)).view(input.shape)


def _threshold(p: float) -> int:
    scaled = p * 2**32
    return int(scaled) + (scaled > int(scaled))


def dropout(input: Tensor, p: float, *, seed: int | None = None, mode: str = "inverted") -> Tensor:
    """The training form of dropout. Without a seed, stock's mask: `torch.vmap` knows how to draw one a sample."""
    if seed is None:
        result = F.dropout(input, p)
        return result if mode == "inverted" else result * (1 - p)
    threshold = _threshold(p)
    scale = 2**32 / (2**32 - threshold) if mode == "inverted" and threshold < 2**32 else 1.0
    return torch.where(dropout_mask(input, p, seed), input * scale, 0.0)
