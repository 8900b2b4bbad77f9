"""Tensors of more than 2^31 elements: 32-bit indices would wrap, fp32 counts would stall."""

from __future__ import annotations

from pathlib import Path

import pytest
import reference
import torch
from rounding import assert_rounds_to
from torch import Tensor

from fusedtricks.functional import batch_norm_act, dropout, leaky_relu

ELEMENTS = 2**31 + 4096
PATTERN = 64 * 16411  # rows of 64 channels; not a power of two, which could hide a wrapped index
NEEDED_GB = 16  # input, result, gradient: 13 GB in bf16


pytestmark = pytest.mark.slow


def free_gb(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0] / 2**30
    if not Path("/proc/meminfo").exists():
        return 0.0
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) / 2**20
    return 0.0


@pytest.fixture(autouse=True)
def enough_memory(device: torch.device) -> None:
    if free_gb(device) < NEEDED_GB:
        pytest.skip(f"needs {NEEDED_GB} GB of free memory")


def pattern() -> Tensor:
    return (torch.randn(PATTERN, generator=torch.Generator().manual_seed(0)) + 0.25).bfloat16()


def patterned(device: torch.device) -> Tensor:
    """A one-dimensional bf16 tensor whose element i is pattern()[i % PATTERN]."""
    values = pattern().to(device)
    x = torch.zeros(ELEMENTS, dtype=torch.bfloat16, device=device)
    for start in range(0, ELEMENTS, PATTERN):
        piece = x[start : start + PATTERN]
        piece.copy_(values[: len(piece)])
    return x


def probes() -> Tensor:
    """Indices at both ends, around 2^31, and in between."""
    spots = [0, 2**30 - 100, 2**31 - 100, ELEMENTS - 200]
    return torch.cat([*(torch.arange(s, s + 200) for s in spots), torch.randint(ELEMENTS, (2000,))])


def test_leaky_relu(device):
    x = patterned(device).requires_grad_()
    y = leaky_relu(x, 0.25)
    (dx,) = torch.autograd.grad(y, x, x.detach())
    at = probes()
    expected = torch.nn.functional.leaky_relu(x.detach()[at], 0.25)
    assert torch.equal(y.detach()[at], expected) and torch.equal(dx[at], expected)


def test_dropout(device):
    x = patterned(device).requires_grad_()
    y = dropout(x, 0.5, seed=7)
    (dx,) = torch.autograd.grad(y, x, x.detach())
    at = probes()
    kept = torch.tensor([int(reference.philox(7, 0, i // 4)[i % 4]) >= 2**31 for i in at.tolist()])
    expected = 2 * x.detach()[at] * kept.to(device)
    assert torch.equal(y.detach()[at], expected) and torch.equal(dx[at], expected)


def occurrences(begin: int, end: int) -> Tensor:
    """How often each element of the pattern occurs at the indices from begin to end."""
    first = begin + (torch.arange(PATTERN) - begin) % PATTERN
    return (end - first + PATTERN - 1).div(PATTERN, rounding_mode="floor").clamp(min=0)


def channel(shape: tuple[int, ...], c: int) -> tuple[Tensor, Tensor]:
    """The values in channel c, as float64, and how often each occurs there."""
    if len(shape) == 2:
        return pattern()[c :: shape[1]].double(), occurrences(0, ELEMENTS)[c :: shape[1]]
    return pattern().double(), occurrences(c * shape[2], (c + 1) * shape[2])


@pytest.mark.parametrize(
    "shape",
    [(1, 1, ELEMENTS), (1, 2, ELEMENTS // 2), (ELEMENTS // 64, 64)],
    ids=["one_channel", "second_channel_behind_2^30", "rows"],
)
def test_batch_norm_act(shape, device):
    """Values and gradients at the probes, sums over everything; the gradient is the input itself."""
    n, channels = ELEMENTS // shape[1], shape[1]
    x = patterned(device).view(shape)
    running_mean, running_var = torch.zeros(2, channels, device=device)
    leaf, weight = x.detach().requires_grad_(), torch.ones(channels, device=device).requires_grad_()
    y = batch_norm_act(leaf, running_mean, running_var, weight, training=True, momentum=1.0)
    dx, dw = torch.autograd.grad(y, [leaf, weight], x)

    at = probes()
    coordinates = torch.unravel_index(at, shape)
    for c in range(channels):
        v, count = channel(shape, c)
        mean = (v * count).sum() / n
        var = ((v - mean).square() * count).sum() / n
        rstd = (var + 1e-5).rsqrt()
        xhat, dz = (v - mean) * rstd, v * (v > mean)
        sum_dz, sum_dz_xhat = (dz * count).sum(), (dz * xhat * count).sum()
        assert_rounds_to(running_var[c], var * (n / (n - 1)), name="running_var")
        # 32: the square root of the length of a partial sum in fp32.
        assert_rounds_to(dw[c], sum_dz_xhat, scale=32 * sum_dz_xhat.abs().item(), name="grad_weight")

        here = at[coordinates[1] == c]
        place = torch.unravel_index(here, shape)
        v = x[place].cpu().double()
        xhat = (v - mean) * rstd
        assert (xhat.abs() > 1e-5).all()
        assert_rounds_to(y.detach()[place], xhat.relu(), scale=4.0, name="output")
        expected = rstd * (v * (xhat > 0) - sum_dz / n - xhat * sum_dz_xhat / n)
        assert_rounds_to(dx[place], expected, scale=8.0, name="grad_input")
