"""Fractional max-pooling: stock's windows, values and indices; windows from a seed; gradients; what is kept."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import reference
import torch
import torch.nn.functional as F
from cases import ACTIVATION_CASES, DENSE_LAYOUTS, LAYOUTS, activation_id, each_dtype, never_decreases
from hardware import generator_state
from rounding import HALF_TYPES, assert_rounds_to
from torch import Tensor
from torch.autograd import forward_ad

import fusedtricks.nn as ftnn
from fusedtricks import eager
from fusedtricks import functional as ftF

STOCK = {2: F.fractional_max_pool2d, 3: F.fractional_max_pool3d}
FUSED = {2: ftF.fractional_max_pool2d, 3: ftF.fractional_max_pool3d}
NAN, INF = float("nan"), float("inf")

# Input, kernel and output sizes.
Sizes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
SHAPES: dict[str, Sizes] = {
    "2d": ((2, 3, 11, 13), (2, 3), (6, 7)),
    "2d_more_channels_than_lanes": ((2, 37, 9, 8), (3, 2), (4, 5)),
    "2d_one_channel": ((3, 1, 12, 10), (2, 2), (7, 6)),
    "2d_window_for_each_position": ((1, 5, 6, 7), (2, 3), (5, 5)),
    "2d_one_window": ((2, 3, 7, 9), (3, 3), (1, 1)),
    "2d_window_of_one_place": ((2, 3, 7, 9), (1, 1), (4, 5)),
    "2d_windows_far_apart": ((2, 3, 40, 41), (2, 2), (3, 4)),
    "2d_wide_window": ((2, 3, 9, 19), (1, 7), (5, 8)),
    "2d_places_of_two_bytes": ((1, 3, 24, 25), (16, 17), (5, 6)),
    "2d_planes_longer_than_a_stretch": ((1, 2, 33, 47), (2, 2), (23, 33)),
    "2d_rows_longer_than_a_stretch": ((1, 1, 3, 2300), (2, 2), (2, 1500)),
    "3d": ((2, 3, 7, 8, 9), (2, 3, 2), (4, 5, 6)),
    "3d_more_channels_than_lanes": ((1, 18, 5, 6, 7), (2, 2, 2), (2, 3, 4)),
    "3d_one_window": ((2, 3, 5, 6, 7), (3, 2, 4), (1, 1, 1)),
}
# Several tasks per plane, in forward and backward, so that windows reach from one part into the next.
PARTS: dict[str, Sizes] = {
    "2d": ((1, 2, 230, 241), (3, 3), (180, 190)),
    "2d_many_channels": ((1, 33, 90, 91), (3, 2), (60, 61)),
    "3d": ((1, 2, 15, 60, 61), (3, 2, 2), (9, 44, 45)),
    "2d_each_position": ((1, 3, 190, 191), (1, 1), (190, 191)),  # including those at which a part begins or ends
    "3d_shallow": ((1, 2, 40, 60, 61), (1, 2, 2), (9, 44, 45)),
}
CASES = [
    *ACTIVATION_CASES,
    ("softplus", {"beta": 2.0, "threshold": 25.0}),
    ("leaky_relu", {"negative_slope": NAN}),
]
MONOTONE = [case for case in CASES if never_decreases(*case)]
NOT_MONOTONE = [case for case in CASES if not never_decreases(*case)]
each_monotone = pytest.mark.parametrize(
    ("act", "act_kwargs"), [pytest.param(*case, id=activation_id(case)) for case in MONOTONE]
)
each_shape = pytest.mark.parametrize("sizes", SHAPES.values(), ids=SHAPES)
each_layout = pytest.mark.parametrize("layout", ["contiguous", "channels_last"])


def rank_of(sizes: Sizes) -> int:
    return len(sizes[1])


def samples_of(sizes: Sizes, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random numbers that are below 1 also in half types."""
    return (torch.rand(*sizes[0][:2], rank_of(sizes)) * 255 / 256).to(dtype)


def values(kind: str, shape: tuple[int, ...]) -> Tensor:
    x = torch.randn(shape)
    if kind == "ties":
        return x.mul(2).round()
    if kind == "special":
        x[torch.rand(shape) < 0.5] = -INF
        x[torch.rand(shape) < 0.1] = NAN
    if kind == "zeros":
        return torch.zeros(shape).copysign(x)
    return x


def memory_format(t: Tensor) -> str:
    channels_last = {4: torch.channels_last, 5: torch.channels_last_3d}[t.dim()]
    return "channels_last" if t.is_contiguous(memory_format=channels_last) else "contiguous"


def assert_same(actual: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    torch.testing.assert_close(actual[1].cpu(), expected[1].cpu(), rtol=0, atol=0, check_stride=False)
    torch.testing.assert_close(actual[0].cpu(), expected[0].cpu(), rtol=0, atol=0, equal_nan=True, check_stride=False)


# Stock's windows, from given random numbers.


@pytest.mark.each_isa
@each_layout
@pytest.mark.parametrize("kind", ["normal", "ties", "special", "zeros"])
@each_shape
def test_values_and_indices_are_stocks(sizes, kind, layout, device):
    shape, kernel, output = sizes
    x, samples = values(kind, shape), samples_of(sizes)
    expected = STOCK[rank_of(sizes)](x, kernel, output, return_indices=True, _random_samples=samples)
    placed = LAYOUTS[layout](x.to(device))
    actual = FUSED[rank_of(sizes)](placed, kernel, output, None, True, samples.to(device))
    assert_same(actual, expected)
    if not placed.is_contiguous():
        assert memory_format(actual[0]) == memory_format(actual[1]) == layout


@each_dtype
@each_layout
@pytest.mark.parametrize("name", ["2d", "3d", "2d_more_channels_than_lanes", "2d_planes_longer_than_a_stretch"])
def test_values_and_indices_are_stocks_in_every_dtype(name, layout, dtype, device):
    """For half types, stock computes windows in the half type on the CPU and in float on a GPU."""
    sizes = SHAPES[name]
    shape, kernel, output = sizes
    x, samples = values("ties", shape).to(dtype), samples_of(sizes, dtype)
    actual = FUSED[rank_of(sizes)](LAYOUTS[layout](x.to(device)), kernel, output, None, True, samples.to(device))
    stock = STOCK[rank_of(sizes)]
    candidates = [stock(x, kernel, output, return_indices=True, _random_samples=samples)]
    if dtype in HALF_TYPES:
        y, indices = stock(x.float(), kernel, output, return_indices=True, _random_samples=samples.float())
        candidates.append((y.to(dtype), indices))
    assert any(torch.equal(actual[1].cpu(), indices) for _, indices in candidates)
    assert any(torch.equal(actual[0].cpu(), y) and actual[0].dtype is dtype for y, _ in candidates)


@pytest.mark.parametrize("sample", [0.0, 0.25, 0.5, 1 - 2**-24, 1.0])
def test_windows_of_every_output_size_are_stocks(sample, device):
    """All lengths, and random numbers at the ends of their range, where rounding moves a window."""
    x = torch.arange(40.0).view(1, 1, 1, 40)
    samples = torch.full((1, 1, 2), sample)
    for kernel, output in itertools.product((1, 2, 3, 5), range(1, 36)):
        expected = F.fractional_max_pool2d(x, (1, kernel), (1, output), return_indices=True, _random_samples=samples)
        actual = ftF.fractional_max_pool2d(x.to(device), (1, kernel), (1, output), None, True, samples.to(device))
        assert_same(actual, expected)


@pytest.mark.parametrize("sample", [-7.0, 3.3, 1e30, INF, NAN])
def test_windows_stay_inside_whatever_the_samples(sample, device):
    x = torch.randn(1, 2, 9, 10)
    y, indices = ftF.fractional_max_pool2d(
        x.to(device), 2, (5, 6), None, True, torch.full((1, 2, 2), sample, device=device)
    )
    assert torch.equal(y.cpu(), x.flatten(2).gather(2, indices.cpu().flatten(2)).view(y.shape))


def test_one_set_of_samples_may_be_larger_than_the_batch(device):
    """As in stock, surplus samples are ignored."""
    x, samples = torch.randn(2, 3, 9, 8), torch.rand(5, 3, 2)
    expected = F.fractional_max_pool2d(x, 2, 4, return_indices=True, _random_samples=samples)
    assert_same(ftF.fractional_max_pool2d(x.to(device), 2, 4, None, True, samples.to(device)), expected)


@pytest.mark.parametrize("name", ["2d", "3d"])
def test_without_a_batch_dimension(name, device):
    shape, kernel, output = SHAPES[name]
    rank = len(kernel)
    x, samples = torch.randn(shape[1:]), torch.rand(1, shape[1], rank)
    expected = STOCK[rank](x, kernel, output, return_indices=True, _random_samples=samples)
    leaf = x.to(device).requires_grad_()
    actual = FUSED[rank](leaf, kernel, output, None, True, samples.to(device))
    assert_same(actual, expected)
    (dx,) = torch.autograd.grad(actual[0].sum(), leaf)
    assert dx.shape == leaf.shape and dx.sum() == actual[0].numel()


@pytest.mark.parametrize("ratio", [0.5, (0.5, 0.7), 0.99])
def test_sizes_by_ratio_and_by_one_number(ratio, device):
    x, samples = torch.randn(2, 3, 20, 21), torch.rand(2, 3, 2)
    pair = ratio if isinstance(ratio, tuple) else (ratio, ratio)
    kernel = 1 if ratio == 0.99 else 2
    expected = F.fractional_max_pool2d(x, kernel, output_ratio=pair, return_indices=True, _random_samples=samples)
    actual = ftF.fractional_max_pool2d(x.to(device), kernel, None, ratio, True, samples.to(device))
    assert_same(actual, expected)
    numbers = ftF.fractional_max_pool2d(x.to(device), 3, 7, _random_samples=samples.to(device))
    assert torch.equal(numbers.cpu(), F.fractional_max_pool2d(x, 3, 7, _random_samples=samples))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["2d", "3d", "2d_more_channels_than_lanes"])
def test_every_layout(name, layout, device):
    sizes = SHAPES[name]
    shape, kernel, output = sizes
    x, samples = LAYOUTS[layout](torch.randn(shape)), samples_of(sizes)
    expected = STOCK[rank_of(sizes)](x, kernel, output, return_indices=True, _random_samples=samples)
    placed = torch.empty_strided(x.shape, x.stride(), device=device).copy_(x) if x.is_contiguous() else x.to(device)
    leaf = (LAYOUTS[layout](placed) if layout != "expanded" else placed).detach().requires_grad_()
    actual = FUSED[rank_of(sizes)](leaf, kernel, output, None, True, samples.to(device))
    assert_same(actual, expected)
    (dx,) = torch.autograd.grad(actual[0].sum(), leaf)
    counted = torch.zeros(shape).flatten(2)
    counted.scatter_add_(2, expected[1].flatten(2), torch.ones(expected[1].shape).flatten(2))
    assert torch.equal(dx.cpu(), counted.view(shape))
    if layout in DENSE_LAYOUTS and layout != "reversed":
        wanted = "channels_last" if "channels_last" in layout else "contiguous"
        assert memory_format(actual[0]) == memory_format(dx) == wanted


def test_indices_are_for_max_unpool(device):
    x = torch.randn(2, 3, 10, 11, device=device)
    y, indices = ftF.fractional_max_pool2d(x, 2, 5, return_indices=True, seed=1)
    back = F.max_unpool2d(y, indices, 2, output_size=(10, 11))
    assert torch.equal(back[back != 0].unique(), y.unique())
    assert indices.dtype is torch.int64 and not indices.requires_grad


# Windows from a seed.


def window_starts(u: float, length: int, output: int, kernel: int) -> list[int]:
    """Graham's sequence, in Python floats."""
    alpha = (length - kernel) / (output - 1) if output > 1 else 0.0
    return [int((i + u) * alpha) - int(u * alpha) for i in range(output - 1)] + [length - kernel]


def pooled_by_hand(x: Tensor, kernel: tuple[int, ...], output: tuple[int, ...], seed: int) -> Tensor:
    """Maxima of the windows, with words from the Philox in pure Python."""
    rank, y = len(kernel), torch.empty(*x.shape[:2], *output)
    for n, c in itertools.product(range(x.shape[0]), range(x.shape[1])):
        first = (n * x.shape[1] + c) * rank
        words = [reference.philox(seed, 0, i // 4)[i % 4] / 2**32 for i in range(first, first + rank)]
        if rank == 2:
            words.reverse()  # stock has width before height
        starts = [window_starts(*each) for each in zip(words, x.shape[2:], output, kernel, strict=True)]
        for place in itertools.product(*map(range, output)):
            corner = [start[i] for start, i in zip(starts, place, strict=True)]
            window = tuple(slice(a, a + k) for a, k in zip(corner, kernel, strict=True))
            y[(n, c, *place)] = x[(n, c, *window)].max()
    return y


@pytest.mark.each_isa
@each_layout
@pytest.mark.parametrize("seed", [0, 5, -1, 2**63 - 1])
@pytest.mark.parametrize("name", ["2d", "2d_one_channel", "3d"])
def test_windows_follow_from_the_seed(name, seed, layout, device):
    shape, kernel, output = SHAPES[name]
    x = torch.randn(shape)
    y = FUSED[len(kernel)](LAYOUTS[layout](x.to(device)), kernel, output, seed=seed)
    assert torch.equal(y.cpu(), pooled_by_hand(x, kernel, output, seed % 2**64))


@each_dtype
@each_layout
def test_one_seed_has_the_same_windows_in_every_dtype(layout, dtype, device):
    """Hundreds of planes, so that some would have windows that depend on a dtype's rounding."""
    x = torch.randn(8, 33, 1, 60).bfloat16()
    expected = ftF.fractional_max_pool2d(x.double(), (1, 2), (1, 41), None, True, seed=3)[1]
    actual = ftF.fractional_max_pool2d(
        LAYOUTS[layout](x.to(device, dtype=torch.float32).to(dtype)), (1, 2), (1, 41), None, True, seed=3
    )[1]
    if dtype is not torch.float16:
        assert torch.equal(actual.cpu(), expected)
    else:  # there, different values may have become equal
        assert (actual.cpu() - expected).abs().max() <= 1


@each_shape
def test_composition_has_the_same_windows(sizes, device):
    shape, kernel, output = sizes
    x = torch.randn(shape, device=device)
    expected = eager.fractional_max_pool(x, kernel, output, seed=7)
    assert_same(FUSED[rank_of(sizes)](x, kernel, output, None, True, seed=7), expected)


def test_manual_seed_governs_it(device):
    x = torch.randn(4, 8, 30, 30, device=device)
    torch.manual_seed(7)
    first, second = (ftF.fractional_max_pool2d(x, 2, 17) for _ in range(2))
    torch.manual_seed(7)
    assert torch.equal(ftF.fractional_max_pool2d(x, 2, 17), first)
    assert torch.equal(ftF.fractional_max_pool2d(x, 2, 17), second)
    assert not torch.equal(first, second)


def test_generator_is_used_for_a_seed_alone(device):
    """By the same step for any size; not if a seed or samples are given, nor in backward."""
    states = []
    for channels in (1, 100):
        torch.manual_seed(3)
        x = torch.randn(1, channels, 9, 9).to(device).requires_grad_()
        torch.manual_seed(3)
        y = ftF.fractional_max_pool2d(x, 2, 5)
        states.append(generator_state(device))
        y.sum().backward()
        ftF.fractional_max_pool2d(x, 2, 5, seed=1)
        ftF.fractional_max_pool2d(x, 2, 5, _random_samples=torch.full((1, channels, 2), 0.5, device=device))
        assert torch.equal(states[-1], generator_state(device))
    torch.manual_seed(3)
    assert torch.equal(*states) and not torch.equal(states[0], generator_state(device))


def test_windows_are_spread_evenly():
    """The mean start of a window over planes agrees with uniform random numbers within five standard deviations."""
    planes, length, output = 20_000, 20, 7
    x = torch.arange(float(length)).expand(1, planes, 1, length)
    y = ftF.fractional_max_pool2d(x, (1, 1), (1, output), seed=2)[0, :, 0]
    alpha = (length - 1) / (output - 1)
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    for i in range(output - 1):
        starts = ((i + u) * alpha).floor() - (u * alpha).floor()
        deviation = starts.std(correction=0) / math.sqrt(planes)
        assert abs(y[:, i].double().mean() - starts.mean()) <= 5 * deviation, i


# Gradients.


def both(
    sizes: Sizes, layout: str, dtype: torch.dtype, device: torch.device, act: str, act_kwargs: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Tensor], float]:
    """Output and gradient, ours and the reference's in float64, and the magnitude of the gradient's terms."""
    shape, kernel, output = sizes
    pool = FUSED[rank_of(sizes)]
    x = (torch.randn(shape) * 2).to(dtype)
    leaf = LAYOUTS[layout](x.to(device)).detach().requires_grad_()
    y = pool(leaf, kernel, output, act=act, act_kwargs=act_kwargs, seed=4)
    dy = torch.randn(y.shape).to(dtype)
    (dx,) = torch.autograd.grad(y, leaf, LAYOUTS[layout](dy.to(device)))
    exact = x.double().requires_grad_()
    expected, _ = eager.fractional_max_pool(exact, kernel, output, seed=4, act=act, act_kwargs=act_kwargs)
    (gradient,) = torch.autograd.grad(expected, exact, dy.double())
    wanted = {"output": expected.detach(), "grad_input": gradient}
    return {"output": y, "grad_input": dx}, wanted, dy.double().abs().max().item() * math.prod(kernel)


@pytest.mark.each_isa
@each_layout
@each_monotone
def test_every_monotone_activation(act, act_kwargs, layout, device):
    for name in ("2d", "3d"):
        actual, expected, scale = both(SHAPES[name], layout, torch.float32, device, act, act_kwargs)
        assert_rounds_to(actual["output"], expected["output"], name="output")
        assert_rounds_to(actual["grad_input"], expected["grad_input"], scale=scale, name="grad_input")


@each_layout
@each_shape
def test_gradient_of_every_shape(sizes, layout, device):
    actual, expected, scale = both(sizes, layout, torch.float32, device, "leaky_relu", {"negative_slope": 0.2})
    assert_rounds_to(actual["output"], expected["output"], name="output")
    assert_rounds_to(actual["grad_input"], expected["grad_input"], scale=scale, name="grad_input")


@each_dtype
@each_layout
@pytest.mark.parametrize("act", ["identity", "elu"])
def test_every_dtype(act, layout, dtype, device):
    """One rounding of the result and one of the sum of gradients, whose terms are not rounded to a half type."""
    actual, expected, scale = both(SHAPES["2d_window_for_each_position"], layout, dtype, device, act, {})
    assert actual["output"].dtype is actual["grad_input"].dtype is dtype
    assert_rounds_to(actual["output"], expected["output"], name="output")
    # The derivative is computed from the rounded result.
    inexact = torch.finfo(dtype).eps if act == "elu" and dtype in HALF_TYPES else 0.0
    assert_rounds_to(actual["grad_input"], expected["grad_input"], scale=scale, inexact=inexact, name="grad_input")


@each_layout
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("sizes", PARTS.values(), ids=PARTS)
def test_planes_that_tasks_share(sizes, dtype, layout, device):
    actual, expected, scale = both(sizes, layout, dtype, device, "identity", {})
    assert_rounds_to(actual["output"], expected["output"], scale=0.0, name="output")
    assert_rounds_to(actual["grad_input"], expected["grad_input"], scale=scale, name="grad_input")


@each_layout
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["2d", "2d_many_channels", "3d"])
def test_same_bits_for_any_number_of_threads(name, dtype, layout, restore_threads):
    results = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        torch.manual_seed(1)
        results.append(both(PARTS[name], layout, dtype, torch.device("cpu"), "tanh", {})[0])
    for result, key in itertools.product(results[1:], results[0]):
        assert torch.equal(result[key], results[0][key]), key


def test_a_position_gets_the_gradients_of_all_its_windows(device):
    """In window order, which shows in sums of 1 and values that rounding loses next to 1."""
    x = torch.zeros(1, 1, 1, 9, device=device)
    x[..., 4] = 1
    leaf = x.requires_grad_()
    y = ftF.fractional_max_pool2d(leaf, (1, 5), (1, 5), seed=0)  # every window contains the middle
    dy = torch.tensor([2.0**-24, 2.0**-24, 1.0, 2.0**-25, 2.0**-25], device=device).view(1, 1, 1, 5)
    (dx,) = torch.autograd.grad(y, leaf, dy)
    assert dx[0, 0, 0, 4].item() == 1 + 2.0**-23 and dx.count_nonzero() == 1


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "strided", "expanded", "reversed"])
def test_gradients_of_any_strides(layout, device):
    shape, kernel, output = SHAPES["2d"]
    x = torch.randn(shape, device=device, requires_grad=True)
    y = ftF.fractional_max_pool2d(x, kernel, output, act="tanh", seed=1)
    dy = LAYOUTS[layout](torch.randn(y.shape, device=device))
    (actual,) = torch.autograd.grad(y, x, dy, retain_graph=True)
    (expected,) = torch.autograd.grad(y, x, dy.clone(memory_format=torch.contiguous_format))
    assert torch.equal(actual, expected) and actual.is_contiguous()


@each_layout
@each_monotone
def test_gradgradcheck(act, act_kwargs, layout, device):
    x = LAYOUTS[layout](torch.randn(2, 2, 4, 5, dtype=torch.float64, device=device)).requires_grad_()

    def function(x: Tensor) -> Any:
        return ftF.fractional_max_pool2d(x, (2, 3), (2, 3), act=act, act_kwargs=act_kwargs, seed=6)

    assert torch.autograd.gradcheck(function, x)
    assert torch.autograd.gradgradcheck(function, x)


def test_gradgradcheck_3d_with_samples(device):
    x = torch.randn(1, 2, 4, 5, 4, dtype=torch.float64, device=device, requires_grad=True)
    samples = torch.rand(1, 2, 3, dtype=torch.float64, device=device)

    def function(x: Tensor) -> Any:
        return ftF.fractional_max_pool3d(x, 2, (2, 3, 2), _random_samples=samples, act="elu")

    assert torch.autograd.gradcheck(function, x)
    assert torch.autograd.gradgradcheck(function, x)


def kept_for_backward(function: Callable[[], Any]) -> list[Tensor]:
    kept: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        kept.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        function()
    return kept


@pytest.mark.parametrize("kernel", [(16, 16), (16, 17), (256, 256), (256, 257)], ids=str)
def test_keeps_the_place_in_the_window(kernel, device):
    """One byte for up to 256 positions, two for up to 65536, also if the maximum is at the last position."""
    shape = (1, 1, kernel[0] + 2, kernel[1] + 2)
    x = torch.zeros(shape, device=device)
    x[..., -1, -1] = 1
    x.requires_grad_()
    places = kernel[0] * kernel[1]
    kept = kept_for_backward(lambda: ftF.fractional_max_pool2d(x, kernel, 1, seed=1))
    expected_bytes = 1 if places <= 256 else 2 if places <= 65536 else 4
    assert [t.element_size() for t in kept if t.numel() == 1] == [expected_bytes]
    y, indices = ftF.fractional_max_pool2d(x, kernel, 1, return_indices=True, seed=1)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert y.item() == 1 and indices.item() == x.numel() - 1 and torch.equal(dx, x)


@pytest.mark.parametrize("return_indices", [False, True])
@pytest.mark.parametrize("act", ["identity", "relu"])
def test_keeps_bytes_and_with_an_activation_the_result(act, return_indices, device):
    x = torch.randn(4, 8, 20, 20, device=device, requires_grad=True)
    results: list[Any] = []

    def call() -> None:
        results.append(ftF.fractional_max_pool2d(x, 3, 10, None, return_indices, act=act))

    kept = kept_for_backward(call)
    y = results[0][0] if return_indices else results[0]
    sizes = sorted(t.numel() * t.element_size() for t in kept)
    assert sizes == [16, y.numel(), *[4 * y.numel()] * (act != "identity")]
    if act != "identity":
        assert y.data_ptr() in [t.data_ptr() for t in kept]


def test_backward_draws_nothing_and_recomputes_the_same_windows(device):
    x = torch.randn(2, 5, 30, 31, device=device, requires_grad=True)
    y, indices = ftF.fractional_max_pool2d(x, 2, 20, return_indices=True)
    ftF.fractional_max_pool2d(x, 2, 20)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    counted = torch.zeros(2, 5, 930, device=device)
    counted.scatter_add_(2, indices.flatten(2), torch.ones(2, 5, 400, device=device))
    assert torch.equal(dx.flatten(2), counted)


# Activations.


@each_monotone
def test_activating_first_gives_the_same(act, act_kwargs, device):
    x = torch.cat([torch.randn(2, 2, 9, 9) * scale for scale in (0.1, 1, 10)], 1).to(device)
    x[0, 0, 3, 3], x[1, 0, 4, 4] = NAN, INF
    first = eager.fractional_max_pool(eager.activation(x, act, **act_kwargs), (3, 3), (5, 5), seed=1)[0]
    y = ftF.fractional_max_pool2d(x, 3, 5, act=act, act_kwargs=act_kwargs, seed=1)
    torch.testing.assert_close(y, first, rtol=4e-6, atol=1e-6, equal_nan=True)


@each_monotone
def test_monotone_activations_never_decrease(act, act_kwargs):
    x = torch.linspace(-30, 30, 100_001, dtype=torch.float64)
    y = eager.activation(x, act, **act_kwargs)
    # Softplus steps down by e^-threshold / beta where it turns into the identity.
    assert (y.diff() >= -math.exp(-20)).all()


@pytest.mark.parametrize(("act", "act_kwargs"), NOT_MONOTONE, ids=map(activation_id, NOT_MONOTONE))
def test_other_activations_are_refused(act, act_kwargs, device):
    x = torch.randn(1, 2, 9, 9, device=device)
    got = rf"act: got {act}\(.*takes .*: identity, relu, relu6, leaky_relu, elu, selu, sigmoid, tanh, softplus"
    before = generator_state(device)
    with pytest.raises(ValueError, match=got):
        ftF.fractional_max_pool2d(x, 2, 4, act=act, act_kwargs=act_kwargs)
    with pytest.raises(ValueError, match=got):
        ftnn.FractionalMaxPool2d(2, 4, act=act, act_kwargs=act_kwargs)
    with pytest.raises(ValueError, match=got):
        torch.ops.fusedtricks.fractional_max_pool(
            x, [2, 2], [4, 4], None, None, act, list((ftF.ACTIVATIONS[act] | act_kwargs).values())
        )
    assert torch.equal(generator_state(device), before)


# Mistakes.


def samples_like(x: Tensor, batch: int = 2) -> Tensor:
    return torch.zeros(batch, 3, x.dim() - 2, dtype=x.dtype, device=x.device)


# Arguments in addition to a valid input and sizes; a function computes its argument from the input.
MISTAKES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no_size": ({"output_size": None}, ValueError, "output_size or an output_ratio"),
    "ratio_zero": (
        {"output_size": None, "output_ratio": 0.0},
        ValueError,
        r"output_ratio must be between 0 and 1.*0\.0",
    ),
    "ratio_one": (
        {"output_size": None, "output_ratio": 1.0},
        ValueError,
        "output_ratio must be between 0 and 1",
    ),
    "ratio_negative": ({"output_size": None, "output_ratio": -0.5}, ValueError, "output_ratio must be between"),
    "ratio_nan": ({"output_size": None, "output_ratio": NAN}, ValueError, "output_ratio must be between"),
    "ratio_lengths": ({"output_size": None, "output_ratio": (0.5,) * 4}, ValueError, "output_ratio"),
    "ratio_text": ({"output_size": None, "output_ratio": "half"}, TypeError, "output_ratio"),
    "ratio_to_no_window": ({"output_size": None, "output_ratio": 0.01}, RuntimeError, "output_size is 0.*takes 1"),
    "ratio_too_large": (
        {"output_size": None, "output_ratio": 0.99, "kernel_size": 5},
        RuntimeError,
        "output_size is 8",
    ),
    "size_zero": ({"output_size": 0}, RuntimeError, "output_size is 0.*takes 1"),
    "size_negative": ({"output_size": -1}, RuntimeError, "output_size is -1.* takes 1 to"),
    "size_too_large": ({"output_size": 10}, RuntimeError, "output_size is 10.*length 9.*window 2.*takes 1 to"),
    "size_lengths": ({"output_size": (4,) * 4}, RuntimeError, "output_size"),
    "size_no_integer": ({"output_size": 4.5}, TypeError, "output_size"),
    "kernel_zero": ({"kernel_size": 0}, ValueError, "kernel_size must be greater than 0, but got 0"),
    "kernel_negative": ({"kernel_size": -2}, ValueError, "kernel_size must be greater than 0, but got -2"),
    "kernel_too_large": ({"kernel_size": 10}, RuntimeError, "window 10"),
    "kernel_lengths": ({"kernel_size": (2,) * 4}, RuntimeError, "kernel_size"),
    "kernel_no_integer": ({"kernel_size": "2"}, TypeError, "kernel_size"),
    "input_rank": ({"input": lambda x: x[0, 0, 0]}, RuntimeError, "input"),
    "input_no_channels": ({"input": lambda x: x[:, :0]}, RuntimeError, "channel"),
    "input_no_tensor": ({"input": [[1.0]]}, TypeError, "input"),
    "samples_no_tensor": ({"_random_samples": 0.5}, TypeError, "_random_samples"),
    "samples_rank": ({"_random_samples": lambda x: x.new_zeros(2, 3)}, RuntimeError, "_random_samples"),
    "samples_batch": ({"_random_samples": lambda x: samples_like(x, 1)}, RuntimeError, "samples has shape"),
    "samples_dtype": ({"_random_samples": lambda x: samples_like(x).double()}, RuntimeError, "samples has dtype"),
    "samples_device": ({"_random_samples": lambda x: samples_like(x).to("meta")}, RuntimeError, "samples is on device"),
    "seed_no_integer": ({"seed": 0.5}, TypeError, "seed"),
    "seed_too_large": ({"seed": 2**64}, ValueError, "seed"),
    "unknown_activation": ({"act": "relo"}, ValueError, "act.*relo"),
    "unknown_parameter": ({"act": "elu", "act_kwargs": {"slope": 1.0}}, TypeError, "slope"),
}


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize(("change", "error", "message"), MISTAKES.values(), ids=MISTAKES)
def test_bad_input(change, error, message, rank, device):
    x = torch.randn(2, 3, *[9] * rank).to(device)
    made = {name: value(x) if callable(value) else value for name, value in change.items()}
    before, values_before = generator_state(device), x.clone()
    with pytest.raises(error, match=message):
        FUSED[rank](**{"input": x, "kernel_size": 2, "output_size": 4, **made})
    assert torch.equal(generator_state(device), before) and torch.equal(x, values_before)


@pytest.mark.parametrize("rank", [2, 3])
def test_largest_output_is_stocks(rank, device):
    """In 3d, stock does not allow the size with one window per position."""
    x = torch.randn(1, 2, *[6] * rank).to(device)
    largest = 5 if rank == 2 else 4
    FUSED[rank](x, 2, largest), STOCK[rank](x, 2, largest)
    for pool in (FUSED[rank], STOCK[rank]):
        with pytest.raises(RuntimeError):
            pool(x, 2, largest + 1)


@pytest.mark.parametrize("name", ["FractionalMaxPool2d", "FractionalMaxPool3d"])
@pytest.mark.parametrize("arguments", [(), (4, 0.5), (None, 1.0), (None, (0.5, -0.1, 0.5)), (None, 0)], ids=str)
def test_modules_raise_as_stock(arguments, name):
    with pytest.raises(ValueError) as expected:
        getattr(torch.nn, name)(2, *arguments)
    with pytest.raises(ValueError) as actual:
        getattr(ftnn, name)(2, *arguments)
    assert str(actual.value) == str(expected.value)


def test_sparse_input_is_refused():
    with pytest.raises((NotImplementedError, RuntimeError)):
        ftF.fractional_max_pool2d(torch.randn(2, 3, 9, 9).to_sparse(), 2, 4)


# PyTorch's machinery.


@pytest.mark.parametrize("name", ["2d", "3d"])
def test_empty_batch(name, device):
    shape, kernel, output = SHAPES[name]
    x = torch.randn(0, *shape[1:], device=device, requires_grad=True)
    y, indices = FUSED[len(kernel)](x, kernel, output, return_indices=True, act="tanh")
    y.sum().backward()
    assert y.shape == indices.shape == (0, shape[1], *output) and x.grad.shape == x.shape


@pytest.mark.parametrize("rank", [2, 3])
def test_modules_are_drop_in(rank, device):
    name = f"FractionalMaxPool{rank}d"
    samples = torch.rand(2, 3, rank)
    stock = getattr(torch.nn, name)(2, output_ratio=0.6, _random_samples=samples).to(device)
    fused = getattr(ftnn, name)(2, output_ratio=0.6, _random_samples=samples, act="relu").to(device)
    assert isinstance(fused, getattr(torch.nn, name))
    fused.load_state_dict(stock.state_dict())
    x = torch.randn(2, 3, *[12] * rank, device=device)
    assert torch.equal(fused(x), stock(x).relu())
    with_indices = getattr(ftnn, name)(2, 5, return_indices=True)
    y, indices = with_indices(x)
    assert y.shape == indices.shape == (2, 3, *[5] * rank)


def test_module_repr():
    module = ftnn.FractionalMaxPool2d(2, output_ratio=0.7, act="leaky_relu", act_kwargs={"negative_slope": 0.2})
    expected = "kernel_size=(2, 2), output_ratio=(0.7, 0.7), act='leaky_relu', act_kwargs={'negative_slope': 0.2}"
    assert repr(module) == f"FractionalMaxPool2d({expected})"
    assert repr(ftnn.FractionalMaxPool3d(3, 4, return_indices=True)) == (
        "FractionalMaxPool3d(kernel_size=(3, 3, 3), output_size=(4, 4, 4), return_indices=True)"
    )


@pytest.mark.parametrize(("backend", "dynamic"), [("aot_eager", False), ("aot_eager", True)])
def test_compile(backend, dynamic, device):
    """Same windows as eager, also with the generator; no graph breaks; other sizes do not recompile."""
    torch._dynamo.reset()
    torch.use_deterministic_algorithms(False)

    def function(x: Tensor) -> Any:
        y, indices = ftF.fractional_max_pool2d(x * 1, 2, output_ratio=0.6, return_indices=True, act="elu")
        return y * 2, indices

    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend=backend)
    for shape in [(2, 3, 10, 11), (4, 3, 13, 17)][: 2 if dynamic else 1]:
        with torch._dynamo.config.patch(error_on_recompile=shape[0] != 2):
            x = torch.randn(shape, device=device, requires_grad=True)
            results = []
            for call in (function, compiled):
                torch.manual_seed(1)
                y, indices = call(x)
                results.append((y.detach(), indices, *torch.autograd.grad(y.square().sum(), x)))
            torch.testing.assert_close(results[1], results[0])
    torch._dynamo.reset()


def test_export_needs_stock_operators_alone(device):
    module = ftnn.FractionalMaxPool2d(2, 5, _random_samples=torch.rand(1, 3, 2), act="relu").to(device).eval()
    x = torch.randn(1, 3, 12, 13, device=device)
    program = torch.export.export(module, (x,))
    assert torch.equal(program.module()(x), module(x))
    assert not [node for node in program.graph.nodes if "fusedtricks" in str(node.target)]


@pytest.mark.parametrize("rank", [2, 3])
def test_transforms(rank, device):
    """torch.func and forward-mode differentiation, through the eager composition."""
    x, direction = (torch.randn(2, 3, *[6] * rank, dtype=torch.float64, device=device) for _ in range(2))

    def function(x: Tensor) -> Any:
        return FUSED[rank](x, 2, 3, act="tanh", seed=5)

    step = 1e-6
    expected = (function(x + step * direction) - function(x - step * direction)) / (2 * step)
    value, tangent = torch.func.jvp(function, (x,), (direction,))
    torch.testing.assert_close(value, function(x))
    torch.testing.assert_close(tangent, expected, rtol=1e-6, atol=1e-6)
    with forward_ad.dual_level():
        result = forward_ad.unpack_dual(function(forward_ad.make_dual(x, direction)))
    torch.testing.assert_close(result.tangent, expected, rtol=1e-6, atol=1e-6)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(leaf).square().sum(), leaf)
    torch.testing.assert_close(torch.func.grad(lambda x: function(x).square().sum())(x), gradient)


def test_vmap(device):
    x = torch.randn(4, 2, 3, 8, 8, device=device)
    expected = torch.stack([ftF.fractional_max_pool2d(each, 2, 4, seed=5) for each in x])
    assert torch.equal(torch.vmap(lambda x: ftF.fractional_max_pool2d(x, 2, 4, seed=5))(x), expected)
