"""Dropout of channels and samples, alpha dropout, drop_path: masks, values, gradients, layouts, moments, bad input."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import reference
import torch
from cases import LAYOUTS, STREAMED_SHAPES, channels_last, each_dtype
from hardware import generator_state
from rounding import assert_rounds_to
from torch import Tensor, nn

from fusedtricks import functional as F
from fusedtricks import nn as fnn

SEED = 0x123456789ABCDEF

# The function, the number of leading dimensions of the mask, and the mode.
OPS: dict[str, tuple[Callable[..., Tensor], int | None, str]] = {
    "dropout1d": (F.dropout1d, 2, "inverted"),
    "dropout2d": (F.dropout2d, 2, "inverted"),
    "dropout3d": (F.dropout3d, 2, "inverted"),
    "alpha_dropout": (F.alpha_dropout, None, "alpha"),
    "feature_alpha_dropout": (F.feature_alpha_dropout, 2, "alpha"),
    "drop_path": (F.drop_path, 1, "inverted"),
    "drop_path_batch": (lambda x, p, **kwargs: F.drop_path(x, p, mode="batch", **kwargs), 0, "inverted"),
    "drop_path_unscaled": (lambda x, p, **kwargs: F.drop_path(x, p, scale_by_keep=False, **kwargs), 1, "classic"),
}
DIMS = {"dropout1d": [3], "dropout2d": [4, 3], "dropout3d": [5]}

# Channels of one, of some and of a page's worth of elements; fewer and more of them than words drawn at once.
SHAPES = [
    (7, 13),
    (3, 301, 1),
    (5, 67, 7),
    (2, 3, 4099),
    (2, 300, 5, 7),
    (3, 5, 7, 11),
    (2, 3, 130, 129),
    (2, 3, 4, 3, 5),
]


def each_op_and_shape() -> list[Any]:
    return [
        pytest.param(name, shape, id=f"{name}-{'x'.join(map(str, shape))}")
        for name in OPS
        for shape in SHAPES
        if len(shape) in DIMS.get(name, [2, 3, 4, 5])
    ]


def check(name: str, x: Tensor, dy: Tensor, p: float = 0.4) -> None:
    function, mask_dims, mode = OPS[name]
    dims = x.dim() if mask_dims is None else mask_dims
    leaf = x.detach().requires_grad_()
    y = function(leaf, p, training=True, seed=SEED)
    exact = x.detach().cpu().double().requires_grad_()
    expected = reference.feature_dropout(exact, dims, p, SEED, mode)
    (dx,) = torch.autograd.grad(y, leaf, dy)
    (wanted,) = torch.autograd.grad(expected, exact, dy.cpu().double())
    assert y.dtype is dx.dtype is x.dtype
    assert_rounds_to(y, expected.detach(), name="y")
    assert_rounds_to(dx, wanted, name="dx")
    assert torch.equal(dx == 0, wanted.to(dx.device) == 0)


@pytest.mark.each_isa
@pytest.mark.parametrize(("name", "shape"), each_op_and_shape())
def test_values_and_gradients(name, shape, device):
    check(name, torch.randn(shape, device=device), torch.randn(shape, device=device))


@pytest.mark.each_isa
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("name", OPS)
def test_every_layout(name, layout, device):
    shape = {3: (3, 5, 17), 4: (2, 67, 7, 9), 5: (2, 3, 4, 3, 5)}[DIMS.get(name, [4])[0]]
    check(name, layout(torch.randn(shape).to(device)), layout(torch.randn(shape).to(device)))


@pytest.mark.each_isa
@each_dtype
@pytest.mark.parametrize("name", ["dropout2d", "alpha_dropout", "feature_alpha_dropout", "drop_path"])
@pytest.mark.parametrize("layout", [Tensor.contiguous, channels_last], ids=["contiguous", "channels_last"])
def test_every_dtype(layout, name, dtype, device):
    x, dy = (layout(torch.randn(3, 5, 7, 11).to(device, dtype)) for _ in range(2))
    check(name, x, dy)


@pytest.mark.each_isa
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", STREAMED_SHAPES, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["dropout2d", "feature_alpha_dropout", "drop_path"])
def test_larger_than_the_caches(name, dtype, layout, device):
    x = LAYOUTS[layout](torch.randn(STREAMED_SHAPES[dtype]).to(device, dtype))
    check(name, x, x)


@pytest.mark.each_isa
@each_dtype
@pytest.mark.parametrize("layout", [Tensor.contiguous, channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("mode", ["row", "batch"])
def test_drop_path_with_a_residual(mode, layout, dtype, device):
    """One rounding for the sum; the residual's gradient is grad_output."""
    for seed in range(3):
        x, r, dy = (layout(torch.randn(5, 3, 7, 9).to(device, dtype)) for _ in range(3))
        leaves = [t.requires_grad_() for t in (x, r)]
        y = F.drop_path(x, 0.5, r, mode, seed=seed)
        dx, dr = torch.autograd.grad(y, leaves, dy)
        dims = 1 if mode == "row" else 0
        dropped = reference.feature_dropout(x.detach().cpu().double(), dims, 0.5, seed)
        assert_rounds_to(y, dropped + r.detach().cpu().double())
        assert_rounds_to(dx, reference.feature_dropout(dy.cpu().double(), dims, 0.5, seed))
        assert torch.equal(dr, dy) and y.stride() == x.stride()


def test_a_whole_channel_shares_its_fate(device):
    y = F.dropout2d(torch.ones(64, 32, 5, 5, device=device), 0.5)
    assert set(y.flatten(2).unique(dim=2).flatten().tolist()) == {0.0, 2.0}
    share = (y[:, :, 0, 0] != 0).double().mean().item()
    assert abs(share - 0.5) < 5 * math.sqrt(0.25 / (64 * 32))


OTHER_DIMS = [
    ("dropout1d", (5, 17), 1, False),
    ("dropout2d", (6, 5), 2, True),
    ("dropout2d", (2, 5, 17), 2, True),
    ("dropout2d", (2, 5, 3, 4, 2), 2, True),
    ("dropout3d", (40,), 1, True),
    ("dropout3d", (7, 5, 4), 1, True),
    ("dropout3d", (5, 3, 4, 6), 1, False),
    ("dropout3d", (6, 5, 2, 3, 4, 2), 1, True),
]


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(("name", "shape", "mask_dims", "warns"), OTHER_DIMS, ids=str)
def test_other_numbers_of_dimensions(name, shape, mask_dims, warns, inplace, training, device):
    """One sample without a batch dimension; or another kind of input, for which stock warns and goes on."""
    with pytest.warns(UserWarning, match=f"{name}: Received a") if warns else nullcontext([]) as found:
        y = getattr(F, name)(torch.ones(shape, device=device), 0.5, training, inplace, seed=3)
    expected = reference.feature_dropout(torch.ones(shape), mask_dims, 0.5, 3) if training else torch.ones(shape)
    assert torch.equal(y.cpu(), expected)
    assert [warning.filename for warning in found] == [__file__] * warns
    if warns:  # stock drops what lies along the same dimensions
        with pytest.warns(UserWarning):
            dropped = getattr(torch.nn.functional, name)(torch.ones(shape), 0.5)
        flat = dropped.flatten(0, mask_dims - 1).flatten(1) if len(shape) > mask_dims else dropped.flatten()[:, None]
        assert all(len(values.unique()) == 1 for values in flat)


@pytest.mark.parametrize("name", ["dropout1d", "dropout2d", "alpha_dropout", "feature_alpha_dropout"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_in_place(name, layout, device):
    if layout is LAYOUTS["expanded"]:
        return
    function = OPS[name][0]
    shape = (3, 5, 8) if name == "dropout1d" else (3, 5, 8, 4)
    x = layout(torch.randn(shape).to(device))
    expected = function(x.clone(), 0.4, training=True, seed=1)
    leaf = x.clone().requires_grad_()
    changed = leaf * 1
    y = function(changed, 0.4, training=True, inplace=True, seed=1)
    assert y is changed and torch.equal(y, expected)
    dy = torch.randn(shape, device=device)
    (dx,) = torch.autograd.grad(y, leaf, dy)
    twin = x.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(function(twin, 0.4, training=True, seed=1), twin, dy)
    assert torch.equal(dx, wanted)
    with pytest.raises(RuntimeError, match="leaf"):
        function(leaf, 0.4, training=True, inplace=True)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("name", ["alpha_dropout", "feature_alpha_dropout"])
def test_alpha_keeps_mean_and_variance(name, p, device):
    x = torch.randn(1000, 1000, dtype=torch.float64, device=device)
    y = OPS[name][0](x, p, training=True)
    assert abs(y.mean().item()) < 0.01 and abs(y.var().item() - 1) < 0.02


@pytest.mark.parametrize("name", OPS)
def test_values_are_stocks(name):
    """A constant input gives only two values, which must be the same as stock's."""
    stock = {
        "drop_path": nn.functional.dropout1d,
        "drop_path_batch": nn.functional.dropout1d,
        "drop_path_unscaled": None,
    }.get(name, getattr(nn.functional, name, None))
    if stock is None:
        return
    x = torch.full((40, 50, *[1] * (DIMS.get(name, [3])[0] - 2)), 0.7, dtype=torch.float64)
    values = [f(x, 0.3, training=True).unique() for f in (OPS[name][0], stock)]
    assert all(any(abs(v - w) < 1e-8 for w in values[1]) for v in values[0])


@pytest.mark.parametrize("name", OPS)
def test_p_one_p_zero_and_evaluation(name, device):
    function = OPS[name][0]
    shape = (3, 4, *[2] * (DIMS.get(name, [3])[0] - 2))
    x = torch.full(shape, float("nan"), device=device, requires_grad=True)
    for p in (1.0, 1 - 2**-33):
        y = function(x, p, training=True)
        (dx,) = torch.autograd.grad(y, x, torch.full_like(y, float("inf")))
        assert not y.any() and not dx.any()
    before = generator_state(device)
    assert function(x, 0.0, training=True) is x and function(x, 0.5, training=False) is x
    assert torch.equal(generator_state(device), before)


@pytest.mark.parametrize("name", OPS)
def test_generator(name, device):
    function = OPS[name][0]
    x = torch.ones((64, 64, *[2] * (DIMS.get(name, [3])[0] - 2)), device=device)
    torch.manual_seed(3)
    draws = [function(x, 0.5, training=True) for _ in range(12)]
    torch.manual_seed(3)
    assert torch.equal(function(x, 0.5, training=True), draws[0])
    assert any(not torch.equal(draws[0], y) for y in draws)


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("layout", [Tensor.contiguous, channels_last], ids=["contiguous", "channels_last"])
def test_equal_for_any_number_of_threads(layout, name, restore_threads):
    shape = (5, 67, *[9] * (DIMS.get(name, [4])[0] - 2))
    x = layout(torch.randn(shape))
    results = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        results.append(OPS[name][0](x, 0.5, training=True, seed=1))
    assert all(torch.equal(y, results[0]) for y in results)


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)], ids=str)
def test_empty(shape, device):
    x = torch.randn(shape, device=device, requires_grad=True)
    for name in ("dropout1d", "alpha_dropout", "feature_alpha_dropout", "drop_path", "drop_path_batch"):
        y = OPS[name][0](x, 0.5, training=True)
        assert y.shape == shape and torch.autograd.grad(y, x, torch.ones_like(y))[0].shape == shape


@pytest.mark.parametrize("name", OPS)
def test_gradcheck_and_gradgradcheck(name, device):
    function = OPS[name][0]
    x = torch.randn((3, 4, *[2] * (DIMS.get(name, [3])[0] - 2)), dtype=torch.float64, device=device, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: function(x, 0.4, training=True, seed=1), x)
    assert torch.autograd.gradgradcheck(lambda x: function(x, 0.4, training=True, seed=1), x)


def test_gradcheck_of_drop_path_with_a_residual(device):
    x, r = (torch.randn(4, 3, dtype=torch.float64, device=device, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda x, r: F.drop_path(x, 0.4, r, seed=1), (x, r))
    assert torch.autograd.gradgradcheck(lambda x, r: F.drop_path(x, 0.4, r, seed=1), (x, r))


@pytest.mark.parametrize("name", OPS)
def test_nothing_but_a_seed_is_kept(name):
    x = torch.randn((8, 64, *[4] * (DIMS.get(name, [4])[0] - 2)), requires_grad=True)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        OPS[name][0](x, 0.5, training=True)
    assert [t.nbytes for t in saved] == [16]


@pytest.mark.parametrize("name", OPS)
def test_compile_and_transforms(name, device):
    torch._dynamo.reset()
    function = OPS[name][0]
    x = torch.randn((5, 6, *[3] * (DIMS.get(name, [3])[0] - 2)), dtype=torch.float64, device=device)

    def loss(x: Tensor) -> Tensor:
        return function(x * 1, 0.5, training=True, seed=4).square().sum()

    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf), leaf)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(leaf), leaf)[0], expected)
    torch.testing.assert_close(torch.func.grad(loss)(x), expected)


MODULES = [
    (fnn.Dropout1d, nn.Dropout1d, 3),
    (fnn.Dropout2d, nn.Dropout2d, 4),
    (fnn.Dropout3d, nn.Dropout3d, 5),
    (fnn.AlphaDropout, nn.AlphaDropout, 3),
    (fnn.FeatureAlphaDropout, nn.FeatureAlphaDropout, 3),
]


@pytest.mark.parametrize(("fused", "stock", "dims"), MODULES, ids=lambda m: getattr(m, "__name__", ""))
def test_modules(fused, stock, dims, device):
    module = fused(0.3)
    x = torch.randn((20, 30, *[2] * (dims - 2)), device=device)
    assert isinstance(module, stock) and repr(module) == repr(stock(0.3))
    function = {nn.AlphaDropout: F.alpha_dropout, nn.FeatureAlphaDropout: F.feature_alpha_dropout}.get(
        stock, getattr(F, f"dropout{dims - 2}d", None)
    )
    torch.manual_seed(1)
    y = module(x)
    torch.manual_seed(1)
    assert torch.equal(y, function(x, 0.3, training=True))
    assert module.eval()(x) is x


def test_drop_path_module(device):
    """Same arguments and repr as timm's."""
    module = fnn.DropPath(0.25)
    assert repr(module) == "DropPath(drop_prob=0.250)"
    x, r = torch.randn(2, 64, 3, device=device)
    torch.manual_seed(1)
    y = module(x, r)
    torch.manual_seed(1)
    assert torch.equal(y, F.drop_path(x, 0.25, r))
    assert torch.equal(module.eval()(x, r), r + x) and module(x) is x
    unscaled = fnn.DropPath(0.5, scale_by_keep=False)(torch.ones(64, 2, device=device))
    assert set(unscaled.unique().tolist()) == {0.0, 1.0}


def test_drop_path_under_autocast(device):
    x, r = torch.randn(4, 5, device=device).bfloat16(), torch.randn(4, 5, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        y = F.drop_path(x, 0.5, r, seed=1)
    assert y.dtype is torch.float32
    assert_rounds_to(y, reference.feature_dropout(x.cpu().double(), 1, 0.5, 1) + r.cpu().double())


X = torch.zeros(2, 3, 4)
BAD = {
    "dropout1d dims": (lambda: F.dropout1d(torch.zeros(2, 3, 4, 5)), RuntimeError, "Expected 2D or 3D input"),
    "dropout2d dims": (lambda: F.dropout2d(torch.zeros(2)), RuntimeError, "at least 2"),
    "dropout3d dims": (lambda: F.dropout3d(torch.zeros(())), RuntimeError, "at least 1"),
    "feature dims": (lambda: F.feature_alpha_dropout(torch.zeros(2), training=True), RuntimeError, "at least 2"),
    "drop_path dims": (lambda: F.drop_path(torch.zeros(()), 0.5), RuntimeError, "at least 1"),
    "p": (lambda: F.dropout1d(X, 1.5), ValueError, "between 0 and 1, but got 1.5"),
    "alpha p": (lambda: F.alpha_dropout(X, -0.1), ValueError, "between 0 and 1, but got -0.1"),
    "drop_path p": (lambda: F.drop_path(X, float("nan")), ValueError, "but got nan"),
    "drop_prob": (lambda: fnn.DropPath(2.0), ValueError, "but got 2.0"),
    "mode": (lambda: F.drop_path(X, 0.5, mode="rows"), ValueError, "mode has to be 'row' or 'batch', but got 'rows'"),
    "residual": (lambda: F.drop_path(X, 0.5, X[0]), RuntimeError, r"residual has shape \(3, 4\); .* \(2, 3, 4\)"),
    "residual in evaluation": (lambda: F.drop_path(X, 0.0, X[0]), RuntimeError, "residual has shape"),
    "residual dtype": (lambda: F.drop_path(X, 0.5, X.half()), RuntimeError, "residual has dtype Half"),
    "no tensor": (lambda: F.dropout2d(1.0), TypeError, "argument 'input' must be Tensor, not float"),
    "no tensor path": (lambda: F.drop_path(1.0, 0.5), TypeError, "argument 'x' must be Tensor, not float"),
    "seed": (lambda: F.alpha_dropout(X, training=True, seed=2**64), ValueError, "seed has to fit 64 bits"),
}


@pytest.mark.parametrize(("call", "error", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input(call, error, message):
    before = generator_state(torch.device("cpu"))
    with pytest.raises(error, match=message):
        call()
    assert torch.equal(generator_state(torch.device("cpu")), before)
