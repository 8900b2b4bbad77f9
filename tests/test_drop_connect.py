"""DropConnect: values and gradients as stock layers with our dropout's mask, moments, what is kept, modules."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import reference
import torch
import torch.nn.functional as F
from cases import LAYOUTS, each_dtype
from hardware import generator_state
from rounding import assert_rounds_to
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import fusedtricks.functional as ftF
import fusedtricks.nn as ftnn
from fusedtricks import eager

ops = torch.ops.fusedtricks
SEED = 0x123456789ABCDEF
STOCK = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
OURS = {1: ftF.drop_connect_conv1d, 2: ftF.drop_connect_conv2d, 3: ftF.drop_connect_conv3d}

# Shapes of input and weight for linear layers.
LINEARS = {
    "primes": ((7, 13), (5, 13)),
    "vector": ((13,), (5, 13)),
    "sequence": ((2, 3, 13), (5, 13)),
    "no_batch": ((0, 13), (5, 13)),
    "no_features": ((7, 0), (5, 0)),
    "no_outputs": ((7, 13), (0, 13)),
    "larger_than_a_block_of_rows": ((3, 211), (331, 211)),
    "more_samples_than_are_worth_blocks": ((521, 257), (263, 257)),
}
# Shapes of input and weight, and arguments, for convolutions.
CONVOLUTIONS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "1d": ((3, 4, 11), (5, 4, 3), {}),
    "2d": ((3, 4, 7, 9), (6, 4, 3, 2), {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)}),
    "3d": ((2, 3, 4, 5, 6), (4, 3, 2, 3, 2), {"padding": 1}),
    "depthwise": ((2, 6, 8, 8), (6, 1, 3, 3), {"groups": 6, "padding": 1}),
    "groups": ((2, 6, 8, 8), (4, 3, 3, 3), {"groups": 2}),
    "same": ((2, 3, 7, 9), (4, 3, 3, 5), {"padding": "same"}),
    "same_of_even_kernels": ((2, 3, 7, 9), (4, 3, 2, 4), {"padding": "same", "dilation": (1, 3)}),
    "valid": ((2, 3, 7, 9), (4, 3, 3, 3), {"padding": "valid"}),
    "unbatched": ((3, 7, 9), (4, 3, 3, 3), {}),
    "one_number_for_all": ((2, 3, 7, 9), (4, 3, 3, 3), {"stride": [2], "padding": [1]}),
    "no_batch": ((0, 3, 7, 9), (4, 3, 3, 3), {}),
}


def tensors(*shapes: tuple[int, ...], dtype=torch.float64, device="cpu") -> list[Tensor]:
    return [torch.randn(shape, device=device).to(dtype).requires_grad_() for shape in shapes]


def step(function: Callable[..., Tensor], leaves: list[Tensor]) -> list[Tensor]:
    """Output and all gradients; the output's gradient depends only on its shape."""
    y = function(*leaves)
    dy = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape).to(y)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


def dropped(weight: Tensor, p: float, seed: int) -> Tensor:
    """Applies the reference's mask, computed with Python integers."""
    return torch.as_tensor(reference.dropout(weight.cpu(), p, seed)).to(weight.device)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize(("input", "weight"), LINEARS.values(), ids=LINEARS)
def test_linear_is_stock_with_the_reference_mask(input, weight, bias, device, restore_threads):
    torch.set_num_threads(1)  # the number decides whether to split into blocks
    leaves = tensors(input, weight, *[weight[:1]] * bias, device=device)
    actual = step(lambda x, w, b=None: ftF.drop_connect_linear(x, w, b, 0.3, seed=SEED), leaves)
    mask = dropped(torch.ones(weight, dtype=torch.float64, device=device), 0.3, SEED)
    expected = step(lambda x, w, b=None: F.linear(x, w * mask, b), leaves)
    torch.testing.assert_close(actual, expected)


@pytest.mark.each_isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("samples", [0, 1, 37])
def test_operator_of_mostly_weight(samples, dtype, device):
    """Blocks of rows may start anywhere in a block of words; results are exact up to the order of the sums."""
    shapes = [(samples, 211), (703, 211), (703,), (samples, 703)]
    x, w, b, dy = (t.detach() for t in tensors(*shapes, dtype=dtype, device=device))
    y, state = ops.dropped_linear(x, w, b, 0.3, SEED)
    dx, dw = ops.dropped_linear_backward(dy, x, w, state, 0.3)
    assert state.tolist() == [SEED, 0]
    x, w, b, dy = (t.double() for t in (x, w, b, dy))
    weight = ftF.dropout(w, 0.3, seed=SEED)
    for name, actual, left, right in (("y", y, x, weight.t()), ("dx", dx, dy, weight), ("dw", dw, dy.t(), x)):
        expected, magnitude = left @ right, left.abs() @ right.abs()
        if name == "dw":
            expected, magnitude = (ftF.dropout(t, 0.3, seed=SEED) for t in (expected, magnitude))
        if name == "y":
            expected, magnitude = expected + b, magnitude + b.abs()
        assert_rounds_to(actual, expected, scale=magnitude, name=name)


def test_operator_of_mostly_weight_on_any_number_of_threads(restore_threads):
    x, w, b, dy = (t.detach() for t in tensors((16, 512), (1024, 512), (1024,), (16, 1024), dtype=torch.float32))
    results = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        y, state = ops.dropped_linear(x, w, b, 0.3, SEED)
        results.append([y, *ops.dropped_linear_backward(dy, x, w, state, 0.3)])
    assert all(torch.equal(a, b) for result in results for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize("p", [1.0, 1 - 2**-33])
def test_operator_of_mostly_weight_where_all_is_dropped(p, device):
    x, w, b = torch.ones(2, 300, device=device), torch.full((500, 300), float("nan"), device=device), torch.ones(500)
    y, state = ops.dropped_linear(x, w, b.to(device), p, SEED)
    dx, dw = ops.dropped_linear_backward(torch.ones_like(y), x, w, state, p)
    assert torch.equal(y, torch.ones_like(y)) and not dx.any() and not dw.any()


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize(("input", "weight", "arguments"), CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_convolution_is_stock_with_the_reference_mask(input, weight, arguments, bias, device):
    n = len(weight) - 2
    leaves = tensors(input, weight, *[weight[:1]] * bias, device=device)
    actual = step(lambda x, w, b=None: OURS[n](x, w, b, **arguments, p=0.3, seed=SEED), leaves)
    mask = dropped(torch.ones(weight, dtype=torch.float64, device=device), 0.3, SEED)
    expected = step(lambda x, w, b=None: STOCK[n](x, w * mask, b, **arguments), leaves)
    torch.testing.assert_close(actual, expected)


@pytest.mark.each_isa
@each_dtype
def test_values_in_every_dtype(dtype, device):
    """Exact values up to the rounding of the dropped weight and the products."""
    x, w, b = (t.detach() for t in tensors((5, 40), (30, 40), (30,), dtype=dtype, device=device))
    y = ftF.drop_connect_linear(x, w, b, 0.4, seed=3)
    weight = dropped(w.double(), 0.4, 3)
    expected = F.linear(x.double(), weight, b.double())
    magnitude = F.linear(x.double().abs(), weight.abs(), b.double().abs())
    assert y.dtype is dtype
    assert_rounds_to(y, expected, scale=magnitude, inexact=torch.finfo(dtype).eps / 2 * (dtype.itemsize == 2))


@pytest.mark.parametrize(("mask_of", "shape"), [("linear", (37, 53)), ("conv2d", (6, 4, 3, 3))])
def test_mask_is_that_of_dropout(mask_of, shape, device):
    """Bit for bit, with a seed and with the generator; an identity input reveals the dropped weight."""
    w = torch.randn(shape, device=device)

    def weight(**seed: int) -> Tensor:
        if mask_of == "linear":
            return ftF.drop_connect_linear(torch.eye(53, device=device), w, None, 0.5, **seed).t()
        delta = torch.zeros(4, 4, 5, 5, device=device)
        delta[range(4), range(4), 2, 2] = 1
        return ftF.drop_connect_conv2d(delta, w, p=0.5, **seed).flip(-1, -2).transpose(0, 1)

    assert torch.equal(weight(seed=SEED), ftF.dropout(w, 0.5, seed=SEED))
    torch.manual_seed(4)
    actual, after = weight(), generator_state(device)
    torch.manual_seed(4)
    assert torch.equal(actual, ftF.dropout(w, 0.5)) and torch.equal(after, generator_state(device))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(layout, device):
    """Layouts of input, weight and gradient; gradients keep the weight's memory format if the kernels support it."""
    x, w, dy = (LAYOUTS[layout](torch.randn(s, device=device)) for s in [(3, 6, 7, 9), (4, 6, 3, 3), (3, 4, 5, 7)])
    mask = ftF.dropout(torch.ones_like(w, memory_format=torch.contiguous_format), 0.5, seed=2)
    results = []
    for function in (lambda x, w: ftF.drop_connect_conv2d(x, w, p=0.5, seed=2), lambda x, w: F.conv2d(x, w * mask)):
        leaves = [x.detach().requires_grad_(), w.detach().requires_grad_()]
        results.append([y := function(*leaves), *torch.autograd.grad(y, leaves, dy)])
    torch.testing.assert_close(*results)
    if layout in ("contiguous", "channels_last"):
        assert results[0][2].stride() == w.stride()


@pytest.mark.parametrize(
    "shapes", [[(4, 6), (5, 6), (4, 5)], [(4, 300), (270, 300), (4, 270)]], ids=["small", "blocks"]
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_matrices(layout, shapes, device, restore_threads):
    torch.set_num_threads(2)
    x, w, dy = (LAYOUTS[layout](torch.randn(shape, device=device)) for shape in shapes)
    leaves = [x.detach().requires_grad_(), w.detach().requires_grad_()]
    mask = ftF.dropout(torch.ones(w.shape, device=device), 0.5, seed=2)
    actual = torch.autograd.grad(ftF.drop_connect_linear(*leaves, p=0.5, seed=2), leaves, dy)
    torch.testing.assert_close(actual, torch.autograd.grad(F.linear(leaves[0], leaves[1] * mask), leaves, dy))


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 1), (1, 2)], ids=str)
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_gradients_of_some_arguments(kind, wanted, device):
    shapes = [(5, 6), (4, 6), (4,)] if kind == "linear" else [(2, 6, 5), (4, 6, 3), (4,)]
    arguments = [t.detach() for t in tensors(*shapes, device=device)]
    mask = dropped(torch.ones_like(arguments[1]), 0.5, 1)
    ours, stock = (ftF.drop_connect_linear, F.linear) if kind == "linear" else (ftF.drop_connect_conv1d, F.conv1d)
    leaves = [arguments[i].requires_grad_() for i in wanted]
    actual = torch.autograd.grad(ours(*arguments, p=0.5, seed=1).square().sum(), leaves)
    x, w, b = arguments
    torch.testing.assert_close(actual, torch.autograd.grad(stock(x, w * mask, b).square().sum(), leaves))


@pytest.mark.parametrize("shapes", [[(3, 4), (5, 4), (5,)], [(4,), (5, 4)], [(2, 3, 4), (5, 4)], [(2, 40), (70, 40)]])
def test_gradgradcheck_linear(shapes, device):
    leaves = tensors(*shapes, device=device)

    def function(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        return ftF.drop_connect_linear(x, w, b, 0.4, seed=6)

    assert torch.autograd.gradcheck(function, leaves, fast_mode=len(leaves[1]) > 5)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=len(leaves[1]) > 5)


@pytest.mark.parametrize("shapes", [[(2, 2, 5), (4, 2, 2), (4,)], [(1, 2, 4, 3), (2, 1, 2, 2)]], ids=["1d", "2d"])
def test_gradgradcheck_convolution(shapes, device):
    n = len(shapes[1]) - 2

    def function(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        return OURS[n](x, w, b, 1, 1, 1, shapes[0][1] // shapes[1][1], 0.4, seed=6)

    assert torch.autograd.gradcheck(function, tensors(*shapes, device=device), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, tensors(*shapes, device=device), fast_mode=True)


@pytest.mark.parametrize("special", [1.0, float("inf"), float("nan")])
def test_p_one_leaves_the_bias(special, device):
    x, w = torch.randn(3, 4, device=device), torch.full((5, 4), special, device=device, requires_grad=True)
    b = torch.randn(5, device=device)
    y = ftF.drop_connect_linear(x, w, b, 1.0)
    (dw,) = torch.autograd.grad(y.sum(), w)
    assert torch.equal(y, b.expand(3, 5)) and torch.equal(dw, torch.zeros_like(dw))


@pytest.mark.parametrize("call", [{"p": 0.0}, {"p": 0.5, "training": False}], ids=["p_zero", "evaluation"])
def test_nothing_to_drop_is_the_stock_layer(call, device):
    x, w, image, filters = (t.detach() for t in tensors((3, 4), (5, 4), (2, 3, 6, 6), (4, 3, 3, 3), device=device))
    before = generator_state(device)
    assert torch.equal(ftF.drop_connect_linear(x, w, **call), F.linear(x, w))
    actual = ftF.drop_connect_conv2d(image, filters, padding="same", **call)
    assert torch.equal(actual, F.conv2d(image, filters, padding="same"))
    assert torch.equal(generator_state(device), before)


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_keeps_input_weight_and_a_seed(kind, device):
    """Keeps the parameter itself, not a copy, a mask or a dropped weight."""
    shapes = [(8, 64), (128, 64)] if kind == "linear" else [(2, 8, 6, 6), (16, 8, 3, 3)]
    x, w = tensors(*shapes, device=device)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        (ftF.drop_connect_linear if kind == "linear" else ftF.drop_connect_conv2d)(x, w, p=0.5)
    assert {t.data_ptr() for t in kept if t.numel() > 2} == {x.data_ptr(), w.data_ptr()}
    assert sum(t.nbytes for t in kept) == x.nbytes + w.nbytes + 16


def test_backward_twice_and_changed_weight(device):
    x, w = tensors((3, 4), (5, 4), device=device)
    y = ftF.drop_connect_linear(x, w, p=0.5)
    first = torch.autograd.grad(y.sum(), [x, w], retain_graph=True)
    ftF.drop_connect_linear(x, w, p=0.5)
    assert all(map(torch.equal, first, torch.autograd.grad(y.sum(), [x, w], retain_graph=True)))
    with torch.no_grad():
        w.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(y.sum(), [x, w])


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint(use_reentrant, device):
    module = ftnn.DropConnectLinear(6, 6, device=device)
    x = torch.randn(4, 6, device=device, requires_grad=True)
    torch.manual_seed(5)
    y = module(module(x).sin())
    expected = torch.autograd.grad(y.sum(), x)[0]
    torch.manual_seed(5)
    checkpoint(lambda x: module(module(x).sin()), x, use_reentrant=use_reentrant).sum().backward()
    assert torch.equal(x.grad, expected)


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_autocast_is_that_of_the_composition(kind, device):
    shapes = [(8, 24), (16, 24), (16,)] if kind == "linear" else [(2, 4, 6, 6), (8, 4, 3, 3), (8,)]
    leaves = tensors(*shapes, dtype=torch.float32, device=device)
    ours, stock = (ftF.drop_connect_linear, F.linear) if kind == "linear" else (ftF.drop_connect_conv2d, F.conv2d)
    with torch.autocast(device.type, torch.bfloat16):
        actual = step(lambda x, w, b: ours(x, w, b, p=0.3, seed=4), leaves)
        expected = step(lambda x, w, b: stock(x, ftF.dropout(w, 0.3, seed=4), b), leaves)
    assert [t.dtype for t in actual] == [t.dtype for t in expected] == [torch.bfloat16, *[torch.float32] * 3]
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    torch.use_deterministic_algorithms(False)
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.usefixtures("fresh_compiler")
def test_compile(dynamic, device):
    """Same masks, values and gradients as eager."""
    model = nn.Sequential(
        ftnn.DropConnectConv2d(3, 4, 3, padding="same", act="relu"), nn.Flatten(2), ftnn.DropConnectLinear(30, 5)
    ).to(device)
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for batch in (4, 7)[: 1 + dynamic]:
        x = torch.randn(batch, 3, 5, 6, device=device, requires_grad=True)
        results = []
        for function in (compiled, model):
            torch.manual_seed(1)
            results.append(step(lambda x, *_, function=function: function(x), [x, *model.parameters()]))
        torch.testing.assert_close(*results)


@pytest.mark.usefixtures("fresh_compiler")
def test_compile_of_inference_and_meta(device):
    module = ftnn.DropConnectLinear(6, 5, device=device)
    x = torch.randn(4, 6, device=device)
    results = []
    for function in (module, torch.compile(module, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(1)
        with torch.inference_mode():
            results.append(function(x))
    assert torch.equal(*results)
    meta = ftnn.DropConnectConv2d(3, 4, 3, device="meta")
    assert meta(torch.empty(2, 3, 5, 6, device="meta")).shape == (2, 4, 3, 4)
    assert ftnn.DropConnectLinear(6, 5, device="meta")(torch.empty(2, 6, device="meta")).shape == (2, 5)


FUNCTIONS = {
    "linear": (lambda x, w: ftF.drop_connect_linear(x, w, p=0.4, seed=5), (3, 4), (5, 4)),
    "conv": (lambda x, w: ftF.drop_connect_conv1d(x, w, p=0.4, seed=5, padding="same"), (2, 3, 6), (4, 3, 2)),
    "moments": (lambda x, w: torch.cat(ftF.drop_connect_moments(x, w, p=0.4)), (3, 4), (5, 4)),
}


@pytest.mark.parametrize(("function", "input", "weight"), FUNCTIONS.values(), ids=FUNCTIONS)
def test_transforms(function, input, weight, device):
    x, w = (t.detach() for t in tensors(input, weight, device=device))
    actual = torch.func.grad(lambda x, w: function(x, w).square().sum(), argnums=(0, 1))(x, w)
    leaves = [x.clone().requires_grad_(), w.clone().requires_grad_()]
    torch.testing.assert_close(actual, torch.autograd.grad(function(*leaves).square().sum(), leaves))
    tangent = torch.randn_like(w)
    with forward_ad.dual_level():
        result = forward_ad.unpack_dual(function(x, forward_ad.make_dual(w, tangent))).tangent
    step = 1e-6
    expected = (function(x, w + step * tangent) - function(x, w - step * tangent)) / (2 * step)
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_moments_are_those_over_masks(kind, device):
    """Mean and variance over 500 masks agree within five standard errors."""
    n, p = 500, 0.3
    shapes = [(2, 60), (3, 60), (3,)] if kind == "linear" else [(1, 6, 6), (2, 6, 5), (2,)]
    x, w, b = (t.detach() for t in tensors(*shapes, dtype=torch.float32, device=device))
    module = ftnn.DropConnectLinear(60, 3, p=p) if kind == "linear" else ftnn.DropConnectConv1d(6, 2, 5, p=p)
    module.load_state_dict({"weight": w, "bias": b})
    with torch.no_grad():
        mean, variance = module.to(device).moments(x)
        draws = torch.stack([module(x) for _ in range(n)]).double()
    assert ((draws.mean(0) - mean).abs() < 5 * (variance / n).sqrt()).all()
    assert ((draws.var(0) / variance - 1).abs() < 5 * (2 / n) ** 0.5).all()
    if kind == "linear":
        torch.testing.assert_close((mean, variance), ftF.drop_connect_moments(x, w, b, p))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_variance_of_half_types_is_float(dtype, device):
    """300 squared overflows float16."""
    x, w = torch.full((2, 4), 300.0, device=device).to(dtype), torch.ones(3, 4, device=device).to(dtype)
    mean, variance = ftF.drop_connect_moments(x, w, p=0.5)
    assert mean.dtype is dtype and variance.dtype is torch.float32
    torch.testing.assert_close(variance, torch.full((2, 3), 4 * 9e4, device=device))
    with torch.autocast(device.type, torch.bfloat16):
        assert ftF.drop_connect_moments(x.float(), w.float(), p=0.5)[1].dtype is torch.float32


@pytest.mark.parametrize("act", ["relu", "sigmoid"])
def test_inference_by_moments(act, device):
    """Closer to the mean over masks than the activation of the mean is; draws come from the generator."""
    torch.manual_seed(2)
    options = {"p": 0.5, "act": act, "device": device}
    module = ftnn.DropConnectLinear(200, 20, inference="moments", samples=500, **options)
    nn.init.normal_(module.weight, std=0.2)
    x = torch.randn(5, 200, device=device)
    with torch.no_grad():
        truth = torch.stack([module(x) for _ in range(500)]).mean(0)
        module.eval()
        torch.manual_seed(3)
        first = module(x)
        assert not torch.equal(module(x), first)
        torch.manual_seed(3)
        assert torch.equal(module(x), first)
        module.inference = "mean"
        plain = module(x)
    assert torch.equal(plain, ftF.activation(F.linear(x, module.weight, module.bias), act))
    assert (first - truth).norm() < 0.3 * (plain - truth).norm()


def test_inference_by_moments_without_activation_is_the_mean(device):
    module = ftnn.DropConnectLinear(6, 5, inference="moments", device=device).eval()
    x = torch.randn(4, 6, device=device)
    before = generator_state(device)
    assert torch.equal(module(x), F.linear(x, module.weight, module.bias))
    assert torch.equal(generator_state(device), before)


MODULES = {
    "Linear": ((6, 5), (4, 6)),
    "Conv1d": ((3, 4, 3), (2, 3, 9)),
    "Conv2d": ((3, 4, 3), (2, 3, 6, 7)),
    "Conv3d": ((3, 4, 2), (2, 3, 4, 5, 6)),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_are_the_stock_ones(name, device):
    """Same type, signature and state; in evaluation also the same values."""
    arguments, shape = MODULES[name]
    stock, ours = getattr(nn, name), getattr(ftnn, f"DropConnect{name}")
    assert issubclass(ours, stock)
    theirs = {n: p.default for n, p in inspect.signature(stock).parameters.items()}
    assert {n: p.default for n, p in list(inspect.signature(ours).parameters.items())[: len(theirs)]} == theirs
    twin = stock(*arguments, device=device)
    module = ours(*arguments, p=0.25, act="silu", device=device)
    module.load_state_dict(twin.state_dict())
    twin.load_state_dict(module.state_dict())
    x = torch.randn(shape, device=device)
    torch.testing.assert_close(module.eval()(x), F.silu(twin(x)))
    assert module.p == 0.25 and "p=0.25, act=silu" in repr(module)
    torch.manual_seed(1)
    actual = module.train()(x)
    torch.manual_seed(1)
    twin.weight.data = ftF.dropout(twin.weight.data, 0.25)
    torch.testing.assert_close(actual, F.silu(twin(x)))


@pytest.mark.parametrize("padding", [1, "same"])
@pytest.mark.parametrize("mode", ["reflect", "circular"])
def test_padding_modes(mode, padding, device):
    module = ftnn.DropConnectConv2d(3, 4, 3, padding=padding, padding_mode=mode, device=device)
    twin = nn.Conv2d(3, 4, 3, padding=padding, padding_mode=mode, device=device)
    x = torch.randn(2, 3, 5, 6, device=device)
    torch.manual_seed(1)
    actual = module(x)
    torch.manual_seed(1)
    twin.load_state_dict({"weight": ftF.dropout(module.weight.detach(), 0.5), "bias": module.bias})
    torch.testing.assert_close(actual, twin(x))


def linear(**changes: Any) -> dict[str, Any]:
    return {"input": torch.randn(3, 4), "weight": torch.randn(5, 4), "bias": torch.randn(5)} | changes


def conv(**changes: Any) -> dict[str, Any]:
    return {"input": torch.randn(2, 4, 6, 6), "weight": torch.randn(5, 4, 3, 3), "bias": torch.randn(5)} | changes


MISTAKES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "features": (linear(input=torch.randn(3, 5)), RuntimeError, "input.*4 features"),
    "weight_rank": (linear(weight=torch.randn(4)), RuntimeError, "weight has 1 dim"),
    "bias_shape": (linear(bias=torch.randn(4)), RuntimeError, "bias"),
    "bias_dtype": (linear(bias=torch.randn(5).double()), RuntimeError, "bias"),
    "weight_dtype": (linear(weight=torch.randn(5, 4).double()), RuntimeError, "weight"),
    "weight_device": (linear(weight=torch.randn(5, 4, device="meta")), RuntimeError, "weight"),
    "weight_complex": (linear(weight=torch.ones(5, 4, dtype=torch.complex64)), NotImplementedError, "weight"),
    "input_no_tensor": (linear(input=[1.0]), TypeError, "input"),
    "weight_no_tensor": (linear(weight=None), TypeError, "weight"),
    "p": (linear(p=1.5), ValueError, "probability"),
    "p_nan": (linear(p=float("nan")), ValueError, "probability"),
    "seed": (linear(seed=0.5), TypeError, "seed"),
    "conv_rank": (conv(input=torch.randn(4, 6)), RuntimeError, "input"),
    "conv_channels": (conv(input=torch.randn(2, 3, 6, 6)), RuntimeError, "input has 3 channels"),
    "conv_groups": (conv(groups=3), RuntimeError, "groups"),
    "conv_no_groups": (conv(groups=0), RuntimeError, "groups"),
    "conv_stride": (conv(stride=0), RuntimeError, "stride"),
    "conv_strides": (conv(stride=(1, 2, 3)), RuntimeError, "stride"),
    "conv_padding": (conv(padding=-1), RuntimeError, "padding"),
    "conv_padding_name": (conv(padding="full"), RuntimeError, "padding.*full"),
    "conv_same_strided": (conv(padding="same", stride=2), RuntimeError, "same"),
    "conv_dilation": (conv(dilation=0), RuntimeError, "dilation"),
    "conv_kernel": (conv(input=torch.randn(2, 4, 2, 6)), RuntimeError, "kernel"),
    "conv_input_no_tensor": (conv(input=1.0), TypeError, "input"),
}


@pytest.mark.parametrize(("arguments", "error", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(arguments, error, message, device):
    moved = {k: v.to(device) if isinstance(v, Tensor) and not v.is_meta else v for k, v in arguments.items()}
    function = ftF.drop_connect_conv2d if getattr(arguments["weight"], "ndim", 2) == 4 else ftF.drop_connect_linear
    before = generator_state(device)
    with pytest.raises(error, match=message):
        function(**moved)
    assert torch.equal(generator_state(device), before)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"p": -0.1}, ValueError, "probability"),
        ({"inference": "median"}, ValueError, "inference.*median"),
        ({"inference": "moments", "p": 1.0}, ValueError, "below 1"),
        ({"samples": 0}, ValueError, "samples"),
        ({"act": "relo"}, ValueError, "relo"),
        ({"act": "elu", "act_kwargs": {"slope": 1.0}}, TypeError, "slope"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_module_mistakes(options, error, message):
    for make in (lambda: ftnn.DropConnectLinear(3, 4, **options), lambda: ftnn.DropConnectConv2d(3, 4, 3, **options)):
        with pytest.raises(error, match=message):
            make()


def test_eager_composition_is_the_reference(device):
    x, w = (t.detach() for t in tensors((3, 4), (5, 4), device=device))
    torch.testing.assert_close(eager.drop_connect_linear(x, w, p=0.3, seed=7), F.linear(x, dropped(w, 0.3, 7)))
