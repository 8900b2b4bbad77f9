"""Values that stock gets wrong and ours get right; no test fails when a later torch has them right too."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fusedtricks.functional as ftF

EPS = 1e-5
SHAPES = [
    (2, 3, 1, 8),
    (2, 3, 8, 1),
    (1, 3, 4, 4),
    (2, 1, 4, 4),
    (2, 1, 1, 8),
    (2, 3, 1, 1),
    (2, 3, 8),
    (2, 3, 1),
    (1, 3, 5),
    (4, 3),
    (2, 3, 1, 2, 2),
    (2, 3, 2, 1, 2),
]
Strides = tuple[int, ...]


def dense_strides(shape: tuple[int, ...], order: tuple[int, ...]) -> Strides:
    """Strides of a tensor without gaps whose dimensions are stored in this order, the last one innermost."""
    return tuple(math.prod(shape[d] for d in order[order.index(dim) + 1 :]) for dim in range(len(shape)))


def strides_of(shape: tuple[int, ...]) -> set[Strides]:
    """Of every order of the dimensions, each with several strides for dimensions of size 1, where any stride is valid.

    One of them is what torch makes of such a size for channels last, others make the tensor look like another layout.
    """
    orders = itertools.permutations(range(len(shape)))
    dense = {dense_strides(shape, order) for order in orders}
    anything = (0, 1, 3, 7, 999)
    return dense | {
        tuple(odd if size == 1 else stride for size, stride in zip(shape, strides, strict=True))
        for strides in dense
        for odd in anything
    }


def tensor(shape: tuple[int, ...], strides: Strides, dtype: torch.dtype, seed: int) -> Tensor:
    length = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(length, generator=generator, dtype=torch.float64).to(dtype).as_strided(shape, strides)


def formula(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """BatchNorm in training, of operations that know nothing of layouts."""
    dims = [0, *range(2, x.dim())]
    per_channel = (1, -1, *[1] * (x.dim() - 2))
    centred = x - x.mean(dims, keepdim=True)
    normalised = centred / (centred.square().mean(dims, keepdim=True) + EPS).sqrt()
    return normalised * weight.view(per_channel) + bias.view(per_channel)


def stock(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, weight, bias, True, eps=EPS)


def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return ftF.batch_norm_act(x, None, None, weight, bias, act="identity", training=True, eps=EPS)


def results(function, x: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
    """The result and the gradients."""
    channels = x.shape[1]
    weight = torch.linspace(0.5, 1.5, channels, dtype=x.dtype, device=x.device)
    bias = torch.linspace(-1, 1, channels, dtype=x.dtype, device=x.device)
    leaves = [t.detach().requires_grad_() for t in (x, weight, bias)]
    y = function(*leaves)
    return (y.detach(), *torch.autograd.grad(y, leaves, dy))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_batch_norm_with_any_strides(shape, dtype, device):
    """For every layout of the input: a contiguous gradient, one of the input's strides, one in reversed order."""
    order = tuple(range(len(shape)))
    tolerance = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 2e-4, "atol": 2e-4}
    wrong = []
    for strides in sorted(strides_of(shape)):
        for of_gradient in {dense_strides(shape, order), strides, dense_strides(shape, order[::-1])}:
            x, dy = tensor(shape, strides, dtype, 0), tensor(shape, of_gradient, dtype, 1)
            expected = results(formula, x.double().contiguous(), dy.double().contiguous())
            actual = results(ours, on_device(x, device), on_device(dy, device))
            try:
                torch.testing.assert_close([t.cpu() for t in actual], [t.to(dtype) for t in expected], **tolerance)
            except AssertionError as error:
                wrong.append((strides, of_gradient, str(error)))
    assert not wrong


def on_device(t: Tensor, device: torch.device) -> Tensor:
    """With the same strides, also those of dimensions of size 1."""
    length = 1 + sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    return t.as_strided((length,), (1,)).to(device).as_strided(t.shape, t.stride())


def test_stocks_batch_norm_with_some_strides():
    """Stock's gradient is off by 9.7 where the input and the gradient are both taken for what they are not.

    Seen in torch 2.13 on the CPU. All such layouts have a dimension of size 1, whose stride could be anything.
    """
    shape, strides = (2, 3, 1, 8), (24, 1, 3, 3)
    x, dy = tensor(shape, strides, torch.float64, 0), tensor(shape, (24, 8, 8, 1), torch.float64, 1)
    expected = results(formula, x.contiguous(), dy.contiguous())
    torch.testing.assert_close(results(ours, x, dy), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(results(stock, x.contiguous(), dy), expected, rtol=1e-12, atol=1e-12)
    error = (results(stock, x, dy)[1] - expected[1]).abs().max().item()
    if error < 1e-9:
        pytest.skip(f"mended in torch {torch.__version__}")
    assert error > 1


def test_gelu_at_infinity(device):
    """The limits, where stock's 0 times infinity is NaN; see test_activations for the gradient."""
    x = torch.tensor([-math.inf, math.inf], device=device)
    y = ftF.gelu(x)
    assert y[0].abs() < 1e-30 and y[1] == math.inf


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("p", [0.5, 1.0])
def test_a_dropped_value_is_zero(p, value, device):
    """Whatever it was: stock multiplies it by 0, which makes NaN of it."""
    x = torch.full((64,), value, device=device, requires_grad=True)
    y = ftF.dropout(x, p)
    dropped = y == 0
    assert dropped.any() and dropped.all() == (p == 1)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(dx == 0, dropped)
