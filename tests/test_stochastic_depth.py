"""Selecting samples for a branch and adding them back, and the residual block that runs on the kept samples only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cases import LAYOUTS, STREAMED_SHAPES, channels_last, each_dtype
from hardware import generator_state
from rounding import assert_rounds_to
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fusedtricks.functional as ftF
import fusedtricks.nn as ftnn
from fusedtricks.nn.stochastic_depth import kept_samples

# The batch's shape, and how many of its samples go into the branch.
SHAPES = {
    "numbers": ((17,), 5),
    "matrix": ((7, 13), 3),
    "primes": ((5, 3, 7, 11), 2),
    "whole_packs": ((4, 8, 4, 8), 3),
    "half_packs": ((9, 2, 3, 3), 4),
    "5d": ((3, 2, 4, 3, 5), 2),
    "sequence": ((6, 5, 3), 6),
    "many_short_samples": ((20_011, 3), 9001),
    "samples_longer_than_a_task": ((3, 5, 67, 71), 2),
    "no_rows": ((4, 6), 0),
    "no_samples": ((0, 6), 0),
    "empty_samples": ((4, 0, 2), 2),
    "one": ((1, 6), 1),
}
each_shape = pytest.mark.parametrize(("shape", "rows"), SHAPES.values(), ids=SHAPES)


def batch(shape: tuple[int, ...], rows: int, device, dtype=torch.float32, layout=Tensor.contiguous) -> list[Tensor]:
    """Batch, rows, a gradient of the batch's shape, index."""
    sizes = [shape, (rows, *shape[1:]), shape]
    values = [layout(torch.randn(size, device=device).to(dtype)) for size in sizes]
    return [*values, torch.randperm(shape[0])[:rows].to(device)]


def add_with_gradients(function: Callable[..., Tensor], x: Tensor, r: Tensor, dy: Tensor, *rest: Any) -> list[Tensor]:
    leaves = [x.detach().requires_grad_(), r.detach().requires_grad_()]
    y = function(*leaves, *rest)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


def reference_add(x: Tensor, rows: Tensor, index: Tensor, scale: float) -> Tensor:
    return x.index_add(0, index.long(), rows, alpha=scale)


@pytest.mark.each_isa
@pytest.mark.parametrize("scale", [1.0, 1.75])
@each_shape
def test_add_samples(shape, rows, scale, device):
    x, r, dy, index = batch(shape, rows, device, torch.float64)
    actual = add_with_gradients(ftF.add_samples, x, r, dy, index, scale)
    torch.testing.assert_close(actual, add_with_gradients(reference_add, x, r, dy, index, scale))


@pytest.mark.each_isa
@each_shape
def test_select_and_branch_samples(shape, rows, device):
    x, dr, dy, index = batch(shape, rows, device)
    leaf = x.clone().requires_grad_()
    (dx,) = torch.autograd.grad(ftF.select_samples(leaf, index), leaf, dr)
    assert torch.equal(ftF.select_samples(x, index), x[index])
    assert torch.equal(dx, torch.zeros_like(x).index_add(0, index, dr))
    selected, skip = ftF.branch_samples(leaf, index)
    assert torch.equal(selected, x[index]) and torch.equal(skip, x) and skip.data_ptr() == leaf.data_ptr()
    (dx,) = torch.autograd.grad([selected, skip], leaf, [dr, dy], retain_graph=True)
    assert torch.equal(dx, dy.index_add(0, index, dr))
    assert torch.equal(torch.autograd.grad(skip, leaf, dy, retain_graph=True)[0], dy)
    assert torch.equal(torch.autograd.grad(selected, leaf, dr)[0], torch.zeros_like(x).index_add(0, index, dr))


@pytest.mark.each_isa
@each_dtype
def test_values_in_every_dtype(dtype, device):
    x, r, dy, index = batch((9, 37), 4, device, dtype)
    actual = add_with_gradients(ftF.add_samples, x, r, dy, index, 1.3)
    expected = add_with_gradients(reference_add, x.double(), r.double(), dy.double(), index, 1.3)
    for name, ours, theirs in zip(("output", "grad_input", "grad_rows"), actual, expected, strict=True):
        assert ours.dtype is dtype
        assert_rounds_to(ours, theirs, name=name)
    others = torch.ones(9, dtype=torch.bool).index_fill(0, index.cpu(), False).to(device)
    assert torch.equal(actual[0][others], x[others]) and torch.equal(actual[1], dy)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(7, 13), (5, 3, 17), (3, 6, 7, 9), (2, 3, 4, 3, 5)], ids=str)
def test_every_layout(shape, layout, device):
    """Each tensor's layout; if they differ, the batch decides."""
    values = batch(shape, 2, device, torch.float64, LAYOUTS[layout])
    plain = [t.clone(memory_format=torch.contiguous_format) for t in values]
    actual = add_with_gradients(ftF.add_samples, *values, 1.5)
    torch.testing.assert_close(actual, add_with_gradients(reference_add, *plain, 1.5))
    x, r, _, index = values
    assert torch.equal(ftF.select_samples(x, index), plain[0][index])
    torch.testing.assert_close(ftF.add_samples(x, plain[1], index), reference_add(plain[0], plain[1], index, 1))
    torch.testing.assert_close(ftF.add_samples(plain[0], r, index), reference_add(plain[0], plain[1], index, 1))


@pytest.mark.parametrize("shape", [(5, 3, 7, 4), (3, 2, 4, 3, 5), (5, 3, 17)], ids=str)
def test_memory_format_is_kept(shape, device):
    for layout in (Tensor.contiguous, channels_last):
        x, r, dy, index = batch(shape, 2, device, layout=layout)
        results = [*add_with_gradients(ftF.add_samples, x, r, dy, index), ftF.select_samples(x, index)]
        leaf = x.detach().requires_grad_()
        results += torch.autograd.grad(ftF.select_samples(leaf, index), leaf, r)
        assert [t.stride() for t in results] == [(r if len(t) == 2 else x).stride() for t in results]


@pytest.mark.each_isa
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", STREAMED_SHAPES, ids=["float32", "bfloat16"])
def test_larger_than_the_caches(dtype, layout, device):
    x, r, dy, index = batch(STREAMED_SHAPES[dtype], 2, device, dtype, LAYOUTS[layout])
    y, dx, dr = add_with_gradients(ftF.add_samples, x, r, dy, index, 2.0)
    assert torch.equal(y, reference_add(x.float(), r.float(), index, 2.0).to(dtype))
    assert torch.equal(dx, dy) and torch.equal(dr, dy[index] * 2)
    leaf = x.detach().requires_grad_()
    (dx,) = torch.autograd.grad(ftF.select_samples(leaf, index), leaf, r)
    assert torch.equal(dx, torch.zeros_like(x).index_copy(0, index, r))


def test_any_number_of_threads(restore_threads):
    values = batch((23, 5, 41, 43), 9, "cpu")
    results = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        results.append(add_with_gradients(ftF.add_samples, *values, 1.3))
    assert all(torch.equal(a, b) for result in results for a, b in zip(result, results[0], strict=True))


def test_special_values_of_the_others_pass(device):
    x = torch.tensor([float("nan"), float("inf"), -0.0, 1.0], device=device)[:, None].repeat(1, 5)
    y = ftF.add_samples(x, torch.ones(1, 5, device=device), torch.tensor([3], device=device))
    assert torch.equal(y[:3].view(torch.int32), x[:3].view(torch.int32)) and torch.equal(y[3], x[3] + 1)


@pytest.mark.parametrize("function", [ftF.add_samples, reference_add], ids=["ours", "reference"])
def test_gradgradcheck_add(function, device):
    x, r, _, index = batch((4, 3, 2), 2, device, torch.float64)
    leaves = (x.requires_grad_(), r.requires_grad_())
    assert torch.autograd.gradcheck(lambda x, r: function(x, r, index, 1.5), leaves)
    assert torch.autograd.gradgradcheck(lambda x, r: function(x, r, index, 1.5), leaves)


@pytest.mark.parametrize("function", [ftF.select_samples, ftF.branch_samples], ids=["select", "branch"])
def test_gradgradcheck_select(function, device):
    x, *_, index = batch((4, 3, 2), 2, device, torch.float64)
    assert torch.autograd.gradcheck(lambda x: function(x * 1, index), x.requires_grad_())
    assert torch.autograd.gradgradcheck(lambda x: function(x * 1, index), x)


@pytest.mark.parametrize("wanted", ["input", "rows"])
def test_one_gradient(wanted, device):
    x, r, dy, index = batch((4, 3), 2, device)
    leaf = (x if wanted == "input" else r).requires_grad_()
    (gradient,) = torch.autograd.grad(ftF.add_samples(x, r, index, 2.0), leaf, dy)
    assert torch.equal(gradient, dy if wanted == "input" else 2 * dy[index])


def test_keeps_the_index_alone(device):
    x, r, _, index = batch((4, 300), 2, device)
    x.requires_grad_(), r.requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        ftF.add_samples(x, r, index), ftF.select_samples(x, index), ftF.branch_samples(x, index)
    assert {t.data_ptr() for t in kept} == {index.data_ptr()}


def test_int32_index(device):
    x, r, _, index = batch((6, 3), 2, device)
    assert torch.equal(ftF.add_samples(x, r, index.int()), ftF.add_samples(x, r, index))
    assert torch.equal(ftF.select_samples(x, index.int()), x[index])


FUNCTIONS = {
    "add": lambda x, i: ftF.add_samples(x, x[:2].sin(), i, 1.5),
    "select": lambda x, i: ftF.select_samples(x, i).square(),
    "branch": lambda x, i: torch.cat(ftF.branch_samples(x * 2, i)),
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_transforms(function, device):
    x, *_, index = batch((4, 3), 2, device, torch.float64)
    tangent = torch.randn_like(x)
    actual = torch.func.grad(lambda x: function(x, index).square().sum())(x)
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(actual, torch.autograd.grad(function(leaf, index).square().sum(), leaf)[0])
    step = 1e-6
    expected = (function(x + step * tangent, index) - function(x - step * tangent, index)) / (2 * step)
    torch.testing.assert_close(
        torch.func.jvp(lambda x: function(x, index), (x,), (tangent,))[1], expected, rtol=1e-6, atol=1e-6
    )


def call(**changes: Any) -> dict[str, Any]:
    return {"input": torch.randn(4, 3), "rows": torch.randn(2, 3), "index": torch.tensor([2, 0])} | changes


MISTAKES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "rows_shape": (call(rows=torch.randn(2, 4)), RuntimeError, "rows"),
    "rows_number": (call(rows=torch.randn(3, 3)), RuntimeError, "rows"),
    "rows_rank": (call(rows=torch.randn(2, 3, 1)), RuntimeError, "rows"),
    "rows_dtype": (call(rows=torch.randn(2, 3).double()), RuntimeError, "rows"),
    "rows_device": (call(rows=torch.randn(2, 3, device="meta")), RuntimeError, "rows"),
    "index_rank": (call(index=torch.tensor([[2], [0]])), RuntimeError, "index"),
    "index_dtype": (call(index=torch.tensor([2.0, 0.0])), RuntimeError, "index"),
    "index_bool": (call(index=torch.tensor([True, False])), RuntimeError, "index"),
    "index_device": (call(index=torch.zeros(2, dtype=torch.int64, device="meta")), RuntimeError, "index"),
    "input_scalar": (call(input=torch.tensor(1.0)), IndexError, "input"),
    "input_no_tensor": (call(input=[1.0]), TypeError, "input"),
    "rows_no_tensor": (call(rows=[1.0]), TypeError, "rows"),
    "index_no_tensor": (call(index=[2, 0]), TypeError, "index"),
    "scale_no_number": (call(scale="much"), TypeError, "scale"),
}
BAD_NUMBERS = {
    "beyond": ([2, 4], IndexError, r"index\[1\] is 4"),
    "negative": ([-1, 0], IndexError, r"index\[0\] is -1"),
    "twice": ([2, 2], ValueError, "sample 2 twice"),
}


@pytest.mark.parametrize(("arguments", "error", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(arguments, error, message, device):
    moved = {k: v.to(device) if isinstance(v, Tensor) and not v.is_meta else v for k, v in arguments.items()}
    with pytest.raises(error, match=message):
        ftF.add_samples(**moved)
    if message in ("input", "index"):
        for function in (ftF.select_samples, ftF.branch_samples):
            with pytest.raises(error, match=message):
                function(moved["input"], moved["index"])


@pytest.mark.parametrize(("numbers", "error", "message"), BAD_NUMBERS.values(), ids=BAD_NUMBERS)
def test_numbers_of_samples(numbers, error, message):
    """Checked on the CPU only: for a GPU, the host would have to wait."""
    x, r, index = torch.randn(4, 3), torch.randn(2, 3), torch.tensor(numbers)
    for function in (lambda: ftF.add_samples(x, r, index), lambda: ftF.select_samples(x, index)):
        with pytest.raises(error, match=message):
            function()


@pytest.mark.parametrize(
    ("samples", "p", "kept"),
    [(10, 0.4, 6), (10, 0.9, 1), (10, 0.99, 1), (1, 0.5, 1), (3, 0.5, 2), (64, 0.1, 58), (0, 0.5, 0), (10, 1e-9, 10)],
)
def test_kept_samples(samples, p, kept):
    assert kept_samples(samples, p) == kept


class Block(nn.Module):
    """Remembers its input."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 5)

    def forward(self, x: Tensor, times: float = 1.0) -> Tensor:
        self.seen = x.detach()
        return self.linear(x).tanh() * times


def test_skip_runs_the_block_on_the_kept_samples(device):
    """Values and gradients of x for dropped samples and x + N / n block(x) for kept ones."""
    block = Block().to(device)
    module = ftnn.StochasticDepth(block, 0.4, "skip")
    x = torch.randn(10, 3, 5, device=device, requires_grad=True)
    y = module(x)
    assert len(block.seen) == 6
    rows = [next(i for i in range(10) if torch.equal(x[i], row)) for row in block.seen]
    assert len(set(rows)) == 6
    weight = torch.zeros(10, device=device).index_fill(0, torch.tensor(rows, device=device), 10 / 6)
    expected = x + weight[:, None, None] * block(x)
    torch.testing.assert_close(y, expected)
    leaves, dy = [x, *block.parameters()], torch.randn_like(y)
    torch.testing.assert_close(torch.autograd.grad(y, leaves, dy), torch.autograd.grad(expected, leaves, dy))


def test_skip_keeps_every_sample_as_often_and_the_expectation(device):
    module = ftnn.StochasticDepth(nn.Identity(), 0.4, "skip").to(device)
    x, n = torch.ones(5, device=device), 3000
    kept = torch.stack([module(x) != 1 for _ in range(n)]).double()
    assert (kept.sum(1) == 3).all()
    deviation = (0.6 * 0.4 / n) ** 0.5
    assert ((kept.mean(0) - 0.6).abs() < 5 * deviation).all()
    pairs = (kept[:, :-1] * kept[:, 1:]).mean(0)  # without replacement: 3 / 5 * 2 / 4
    assert ((pairs - 0.3).abs() < 5 * (0.3 * 0.7 / n) ** 0.5).all()
    torch.testing.assert_close(module(x)[module(x) != 1].max().item(), 1 + 5 / 3)


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_skip_at_the_ends_and_in_evaluation(training, p, device):
    block = Block().to(device)
    module = ftnn.StochasticDepth(block, p, "skip").train(training)
    x = torch.randn(4, 5, device=device)
    before = generator_state(device)
    y = module(x, times=2.0)
    if training and p == 0.5:
        assert not torch.equal(generator_state(device), before)
    else:
        assert torch.equal(y, x if training and p else x + block(x, 2.0))
        assert torch.equal(generator_state(device), before)


@pytest.mark.parametrize("samples", [0, 1])
def test_skip_of_small_batches(samples, device):
    module = ftnn.StochasticDepth(Block(), 0.5, "skip").to(device)
    x = torch.randn(samples, 5, device=device)
    torch.testing.assert_close(module(x), x + module.block(x))


def test_skip_of_a_channels_last_block(device):
    block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)).to(
        device, memory_format=torch.channels_last
    )
    module = ftnn.StochasticDepth(block, 0.5, "skip")
    x = channels_last(torch.randn(6, 4, 5, 7, device=device)).requires_grad_()
    y = module(x)
    (dx,) = torch.autograd.grad(y.square().sum(), x)
    assert y.is_contiguous(memory_format=torch.channels_last) and dx.is_contiguous(memory_format=torch.channels_last)
    assert block[1].num_batches_tracked == 1


def test_skip_under_autocast(device):
    """The block's bfloat16 is added to a float32 skip connection; the sum is float32, as in stock."""
    module = ftnn.StochasticDepth(nn.Linear(5, 5), 0.5, "skip").to(device)
    x = torch.randn(4, 5, device=device, requires_grad=True)
    with torch.autocast(device.type, torch.bfloat16):
        y = module(x)
    assert y.dtype is torch.float32
    y.sum().backward()
    assert x.grad.dtype is torch.float32


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint_chooses_the_same_samples(use_reentrant, device):
    module = ftnn.StochasticDepth(Block(), 0.5, "skip").to(device)
    x = torch.randn(8, 5, device=device, requires_grad=True)
    torch.manual_seed(3)
    (expected,) = torch.autograd.grad(module(x).square().sum(), x)
    torch.manual_seed(3)
    y = checkpoint(module, x, use_reentrant=use_reentrant)
    torch.randperm(5, device=device)
    y.square().sum().backward()
    torch.testing.assert_close(x.grad, expected)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    torch.use_deterministic_algorithms(False)
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.usefixtures("fresh_compiler")
def test_compile(dynamic, device):
    module = ftnn.StochasticDepth(nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 5)), 0.4, "skip").to(device)
    compiled = torch.compile(module, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for samples in (10, 13)[: 1 + dynamic]:
        x = torch.randn(samples, 5, device=device, requires_grad=True)
        results = []
        for function in (module, compiled):
            torch.manual_seed(1)
            y = function(x)
            results.append([y.detach(), *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])])
        torch.testing.assert_close(*results)


@pytest.mark.parametrize("mode", ["row", "batch"])
def test_masked_modes_are_drop_path(mode, device):
    if not hasattr(ftF, "drop_path"):
        pytest.skip("functional.drop_path is not there")
    module = ftnn.StochasticDepth(Block(), 0.5, mode).to(device)
    x = torch.randn(8, 5, device=device)
    torch.manual_seed(3)
    y = module(x)
    torch.manual_seed(3)
    assert torch.equal(y, ftF.drop_path(module.block(x), 0.5, residual=x, mode=mode))
    torch.testing.assert_close(module.eval()(x), x + module.block(x))


def test_module_mistakes_and_repr():
    with pytest.raises(ValueError, match="probability"):
        ftnn.StochasticDepth(nn.Identity(), 1.5, "skip")
    with pytest.raises(ValueError, match=r"mode.*rows"):
        ftnn.StochasticDepth(nn.Identity(), 0.5, "rows")
    assert "p=0.25, mode='skip'" in repr(ftnn.StochasticDepth(nn.Identity(), 0.25, "skip"))
