"""dropout(act(x + bias)) + residual: values and every gradient, layouts, dtypes, what is kept, bad input."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import reference
import torch
from cases import (
    ACTIVATION_CASES,
    LAYOUTS,
    STREAMED_SHAPES,
    channels_last,
    distance_to_kinks,
    each_activation,
    each_dtype,
)
from hardware import generator_state
from rounding import HALF_TYPES, assert_rounds_to
from torch import Tensor, nn

from fusedtricks import nn as fnn
from fusedtricks.functional import act_dropout, dropout

P, SEED = 0.4, 0x123456789ABCDEF

# Both sides of the points where the kernels split the work differently; a bias for the last dimension or the channels.
SHAPES = {
    "vector": ((1037,), "last"),
    "rows_of_one": ((9, 1), "last"),
    "rows_shorter_than_a_block_of_words": ((67, 3), "last"),
    "rows_of_odd_length": ((37, 101), "last"),
    "more_rows_than_are_summed_at_once": ((1031, 33), "last"),
    "rows_longer_than_a_task": ((11, 4099), "last"),
    "3d_last": ((3, 5, 129), "last"),
    "3d_short_planes": ((65, 3, 2), "channels"),
    "3d_long_planes": ((2, 3, 33_000), "channels"),
    "4d": ((3, 5, 7, 11), "channels"),
    "4d_more_than_a_tile_of_channels": ((2, 67, 9, 8), "channels"),
    "5d": ((2, 3, 4, 3, 5), "channels"),
}


def bias_shape(shape: tuple[int, ...], of: str) -> tuple[int, ...]:
    return (shape[-1],) if of == "last" else (shape[1], *(1,) * (len(shape) - 2))


def inputs(
    shape: tuple[int, ...],
    of: str | None = None,
    residual: bool = False,
    dtype: torch.dtype = torch.float32,
    layout: Any = Tensor.contiguous,
    device: Any = "cpu",
) -> list[Tensor | None]:
    """x, bias and residual; the values do not depend on the layout."""
    x, r = (torch.randn(shape).to(device, dtype) for _ in range(2))
    bias = torch.randn(bias_shape(shape, of)).to(device, dtype) if of else None
    made = [layout(x), bias, layout(r) if residual else None]
    return [None if t is None else t.requires_grad_() for t in made]


def check(
    tensors: list[Tensor | None],
    act: str = "relu",
    act_kwargs: dict[str, float] | None = None,
    p: float = P,
    inexact: float = 0.0,
    layout: Any = Tensor.contiguous,
) -> None:
    """Compares the result and the gradient of each tensor with the reference in float64."""
    act_kwargs = act_kwargs or {}
    present = [t for t in tensors if t is not None]
    exact = [None if t is None else t.detach().cpu().double().requires_grad_() for t in tensors]
    y = act_dropout(*tensors, act=act, act_kwargs=act_kwargs, p=p, seed=SEED)
    expected = reference.act_dropout(*exact, act, act_kwargs, p, SEED)
    dy = layout(torch.randn(y.shape).to(y.device, y.dtype))
    assert y.dtype is tensors[0].dtype
    assert_rounds_to(y, expected.detach(), name="y")
    grads = torch.autograd.grad(y, present, dy)
    wanted = torch.autograd.grad(expected, [t for t in exact if t is not None], dy.cpu().double())
    for source, grad, want in zip(present, grads, wanted, strict=True):
        if source is tensors[1]:
            # A sum whose terms are gradients of x, each accurate to a rounding of dy.
            terms = dy.cpu().double().abs().sum_to_size(source.shape) / (1 - p)
            assert_rounds_to(grad, want, scale=terms, inexact=inexact, name="dbias")
        else:
            assert grad.dtype is source.dtype and grad.shape == source.shape
            assert_rounds_to(grad, want, inexact=inexact, name="gradient")


@pytest.mark.each_isa
@pytest.mark.parametrize("p", [0.0, P])
@pytest.mark.parametrize("act", ["relu", "gelu"])
@pytest.mark.parametrize(("shape", "of"), SHAPES.values(), ids=SHAPES.keys())
def test_every_shape(shape, of, act, p, device):
    check(inputs(shape, of, device=device), act, p=p)


@pytest.mark.each_isa
@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize(
    ("shape", "of"),
    [
        ((7, 13), "last"),
        ((3, 6, 7), "last"),
        ((3, 6, 7, 9), "channels"),
        ((2, 70, 4, 8), "channels"),
        ((3, 5, 4), None),
    ],
    ids=str,
)
def test_every_layout(shape, of, layout, residual, device):
    for act in ("relu", "silu"):
        check(inputs(shape, of, residual, layout=layout, device=device), act, layout=layout)


@pytest.mark.each_isa
@pytest.mark.parametrize("p", [0.0, P])
@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
@each_activation
def test_every_activation(act, act_kwargs, residual, p, device):
    tensors = inputs((33, 61), "last", residual, device=device)
    check(tensors, act, act_kwargs, p)


@pytest.mark.each_isa
@each_dtype
@pytest.mark.parametrize("act", ["relu", "tanh", "gelu"])
@pytest.mark.parametrize("layout", [Tensor.contiguous, channels_last], ids=["contiguous", "channels_last"])
def test_every_dtype(layout, act, dtype, device):
    tensors = inputs((3, 5, 7, 11), "channels", dtype=dtype, layout=layout, device=device)
    # The derivative of tanh is computed from the rounded result, as in stock.
    inexact = 4 * torch.finfo(dtype).eps if act == "tanh" and dtype in HALF_TYPES else 0.0
    check(tensors, act, inexact=inexact, layout=layout)


@pytest.mark.parametrize("dtype", HALF_TYPES, ids=str)
def test_float32_bias_with_half_types(dtype, device):
    """The bias is added before anything is rounded; its gradient has the bias's dtype."""
    x, _, _ = inputs((33, 61), dtype=dtype, device=device)
    bias = torch.randn(61, device=device, requires_grad=True)
    check([x, bias, None], "gelu")


@pytest.mark.each_isa
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", STREAMED_SHAPES, ids=["float32", "bfloat16"])
def test_larger_than_the_caches(dtype, layout, device):
    """Compared with a composition of ops that other tests compare with the reference."""
    x, bias, r = inputs(STREAMED_SHAPES[dtype], "channels", True, dtype, LAYOUTS[layout], device)
    y = act_dropout(x, bias, r, act="leaky_relu", p=P, seed=SEED)
    dy = torch.randn_like(y)
    dx, db, dr = torch.autograd.grad(y, (x, bias, r), dy)
    z = x.double() + bias.double()
    kept = dropout(torch.ones_like(x, dtype=torch.float64), P, seed=SEED)
    slope = torch.where(z > 0, 1.0, 0.01)
    assert_rounds_to(y, (z * slope * kept + r.double()).detach())
    assert_rounds_to(dx, (dy.double() * slope * kept).detach())
    terms = (dy.double() * slope * kept).detach()
    assert_rounds_to(db, terms.sum_to_size(bias.shape), scale=terms.abs().sum_to_size(bias.shape))
    assert torch.equal(dr, dy)


def test_the_mask_is_that_of_dropout(device):
    x = torch.rand(5, 3, 17, device=device) + 1
    for layout in LAYOUTS.values():
        y = layout(x)
        assert torch.equal(act_dropout(y, act="relu", p=P, seed=5), dropout(y, P, seed=5))


@pytest.mark.parametrize("act", ["relu", "sigmoid", "gelu"])
@pytest.mark.parametrize("p", [1.0, 1 - 2**-33])
@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
def test_dropping_everything(residual, p, act, device):
    for shape, of, layout in (((7, 13), "last", Tensor.contiguous), ((2, 3, 4, 5), "channels", channels_last)):
        x, bias, r = inputs(shape, of, residual, layout=layout, device=device)
        x.data[(0,) * x.ndim] = float("nan")
        y = act_dropout(x, bias, r, act=act, p=p)
        dx, db = torch.autograd.grad(y, (x, bias), torch.randn_like(y))
        assert torch.equal(y, r if residual else torch.zeros_like(x)) and not dx.any() and not db.any()


def test_a_backward_of_which_nothing_is_wanted(device):
    dy, x = torch.randn(2, 5, 7, device=device)
    options = {"act": "gelu", "act_args": [], "p": 0.0, "output_mask": [False, False]}
    assert torch.ops.fusedtricks.act_dropout_backward(dy, x, None, None, None, **options) == (None, None)


def test_training_and_the_generator(device):
    """No seed is drawn if nothing is dropped; the generator determines the mask; a given seed leaves it unchanged."""
    x = torch.randn(64, 64, device=device)
    before = generator_state(device)
    still = [act_dropout(x, p=0.5, training=False), act_dropout(x, p=0.0), act_dropout(x, p=0.5, seed=1)]
    assert torch.equal(generator_state(device), before)
    assert torch.equal(still[0], x.relu()) and torch.equal(still[1], x.relu())
    torch.manual_seed(3)
    first, second = act_dropout(x), act_dropout(x)
    torch.manual_seed(3)
    assert torch.equal(act_dropout(x), first) and not torch.equal(first, second)


@pytest.mark.parametrize("shape", [(0,), (0, 5), (3, 0), (0, 3, 4, 5)], ids=str)
def test_empty(shape, device):
    of = None if len(shape) == 1 else "last"
    tensors = inputs(shape, of, True, device=device)
    y = act_dropout(*tensors, p=P)
    grads = torch.autograd.grad(y, [t for t in tensors if t is not None], torch.ones_like(y))
    assert y.shape == shape and all(not g.any() for g in grads)


@pytest.mark.each_isa
@pytest.mark.parametrize(("shape", "of"), [((300, 41), "last"), ((9, 7, 300), "channels"), ((3, 70, 9, 9), "channels")])
@pytest.mark.parametrize("layout", [Tensor.contiguous, channels_last], ids=["contiguous", "channels_last"])
def test_equal_for_any_number_of_threads(layout, shape, of, restore_threads):
    tensors = inputs(shape, of, layout=layout)
    dy = torch.randn(shape)
    results = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        y = act_dropout(*tensors, act="gelu", p=P, seed=SEED)
        results.append([y, *torch.autograd.grad(y, tensors[:2], dy)])
    assert all(torch.equal(a, b) for other in results for a, b in zip(other, results[0], strict=True))


GRADCHECKS = [("last", False), ("last", True), (None, False), ("channels", True)]


@pytest.mark.parametrize(("of", "residual"), GRADCHECKS, ids=str)
@pytest.mark.parametrize(("act", "act_kwargs"), ACTIVATION_CASES, ids=str)
def test_gradcheck_and_gradgradcheck(act, act_kwargs, of, residual, device):
    for p in (0.0, P):
        tensors = inputs((2, 3, 2), of, residual, torch.float64, device=device)
        while distance_to_kinks(tensors[0] if of is None else tensors[0] + tensors[1], act, act_kwargs) < 1e-3:
            tensors = inputs((2, 3, 2), of, residual, torch.float64, device=device)
        given = [t for t in tensors if t is not None]

        def call(*values: Tensor) -> Tensor:
            left = iter(values)
            full = [None if t is None else next(left) for t in tensors]  # noqa: B023
            return act_dropout(*full, act=act, act_kwargs=act_kwargs, p=p, seed=7)  # noqa: B023

        assert torch.autograd.gradcheck(call, given)
        assert torch.autograd.gradgradcheck(call, given)


def test_gradients_of_some_alone(device):
    """Only the requested gradients are computed, and they are the same."""
    for of, layout in itertools.product(("last", "channels"), (Tensor.contiguous, channels_last)):
        tensors = inputs((3, 5, 4, 6), of, True, layout=layout, device=device)
        dy = torch.randn(3, 5, 4, 6, device=device)

        def gradients(wanted: list[int], tensors: list[Tensor] = tensors, dy: Tensor = dy) -> list[Tensor]:
            for i, t in enumerate(tensors):
                t.requires_grad_(i in wanted)
            y = act_dropout(*tensors, act="silu", p=P, seed=1)
            return list(torch.autograd.grad(y, [tensors[i] for i in wanted], dy))

        everything = gradients([0, 1, 2])
        for wanted in ([0], [1], [2], [0, 2], [1, 2]):
            for i, grad in zip(wanted, gradients(wanted), strict=True):
                assert torch.equal(grad, everything[i])


@pytest.mark.parametrize(
    ("act", "residual", "p", "tensors", "seeds"),
    [
        ("relu", None, 0.5, ["y"], 0),
        ("relu", "r", 0.5, ["x"], 1),
        ("identity", "r", 0.5, [], 1),
        ("sigmoid", None, 0.5, ["y"], 1),
        ("relu6", None, 0.5, ["x"], 1),  # 6 * scale / scale need not be 6
        ("relu6", None, 0.0, ["y"], 0),
        ("gelu", None, 0.0, ["x"], 0),
        ("leaky_relu", None, 0.5, ["y"], 1),
    ],
)
def test_what_is_kept_for_backward(act, residual, p, tensors, seeds):
    x, _, r = inputs((64, 256), None, residual is not None)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.detach()) or t, lambda t: t):
        y = act_dropout(x, None, r, act=act, p=p)
    names = {t.data_ptr(): name for name, t in (("x", x), ("y", y)) if t is not None}
    assert [names[t.data_ptr()] for t in saved if t.shape == x.shape] == tensors
    assert [t.nbytes for t in saved if t.shape != x.shape] == [16] * seeds


def module_pair(**kwargs: Any) -> tuple[fnn.LinearActDropout, nn.Sequential]:
    fused = fnn.LinearActDropout(6, 5, p=0.0, **kwargs)
    stock = nn.Sequential(nn.Linear(6, 5), nn.GELU())
    stock[0].load_state_dict(fused.state_dict())
    return fused, stock


@pytest.mark.parametrize("shape", [(7, 6), (6,), (2, 3, 6)], ids=str)
def test_linear_act_dropout_is_the_stock_layers(shape, device):
    fused, stock = (m.to(device).double() for m in module_pair(act="gelu"))
    x = torch.randn(shape, dtype=torch.float64, device=device)
    torch.testing.assert_close(fused(x), stock(x))
    grads = [torch.autograd.grad(m(x).square().sum(), list(m.parameters())) for m in (fused, stock)]
    torch.testing.assert_close(*grads)
    assert "act=gelu, p=0.0" in repr(fused)


def test_modules(device):
    x = torch.randn(40, 30, device=device)
    module = fnn.ActDropout("elu", 0.5, act_kwargs={"alpha": 2.0})
    assert repr(module) == "ActDropout(act=elu, alpha=2.0, p=0.5)"
    torch.manual_seed(1)
    y = module(x, x)
    torch.manual_seed(1)
    assert torch.equal(y, act_dropout(x, None, x, act="elu", act_kwargs={"alpha": 2.0}, p=0.5))
    torch.testing.assert_close(module.eval()(x), nn.functional.elu(x, 2.0))
    linear = fnn.LinearActDropout(30, 30, bias=False, p=1.0, device=device)
    assert torch.equal(linear(x, x), x) and linear.bias is None


def test_autocast(device):
    """The matrix product is bfloat16; the residual and therefore the sum are float32, as in stock."""
    layer = fnn.LinearActDropout(6, 5, act="gelu", p=0.0).to(device)
    x, r = torch.randn(4, 6, device=device), torch.randn(4, 5, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        y = layer(x, r)
        z = nn.functional.linear(x, layer.weight)
    expected = nn.functional.gelu(z.double() + layer.bias.double()) + r.double()
    assert z.dtype is torch.bfloat16 and y.dtype is torch.float32
    assert_rounds_to(y, expected.detach())


@pytest.mark.parametrize("backend", ["aot_eager"])
def test_compile(backend, device):
    torch._dynamo.reset()
    layer = fnn.LinearActDropout(6, 5, act="silu").to(device)
    x, r = torch.randn(4, 6, device=device), torch.randn(4, 5, device=device)

    def run(function: Any) -> list[Tensor]:
        torch.manual_seed(2)
        y = function(x, r)
        return [y, *torch.autograd.grad(y.square().sum(), list(layer.parameters()))]

    torch.testing.assert_close(run(torch.compile(layer, fullgraph=True, backend=backend)), run(layer))


def test_transforms(device):
    """torch.func transforms use the eager composition."""
    x, bias, r = (t.detach() for t in inputs((4, 5), "last", True, torch.float64, device=device))

    def loss(x: Tensor, bias: Tensor, r: Tensor) -> Tensor:
        return act_dropout(x, bias, r, act="silu", p=P, seed=3).square().sum()

    leaves = [t.clone().requires_grad_() for t in (x, bias, r)]
    expected = torch.autograd.grad(loss(*leaves), leaves)
    torch.testing.assert_close(torch.func.grad(loss, argnums=(0, 1, 2))(x, bias, r), expected)
    _, tangent = torch.func.jvp(lambda x: loss(x, bias, r), (x,), (torch.ones_like(x),))
    torch.testing.assert_close(tangent, expected[0].sum())


def test_export_ends_in_stock_operators():
    layer = fnn.LinearActDropout(6, 5, act="gelu").eval()
    program = torch.export.export(layer, (torch.randn(4, 6),))
    assert not any("fusedtricks" in str(node.target) for node in program.graph.nodes)


BAD = {
    "bias of another size": ({"bias": torch.zeros(4)}, RuntimeError, r"bias has shape \[4\].* takes \(5,\)"),
    "bias of two dimensions": ({"bias": torch.zeros(3, 5)}, RuntimeError, r"bias has shape \[3, 5\]"),
    "bias dtype": ({"bias": torch.zeros(5).double()}, RuntimeError, "bias has dtype Double"),
    "residual shape": ({"residual": torch.zeros(3, 4)}, RuntimeError, r"residual has shape \[3, 4\]"),
    "residual dtype": ({"residual": torch.zeros(3, 5).half()}, RuntimeError, "residual has dtype Half"),
    "p": ({"p": 1.5}, ValueError, "probability has to be between 0 and 1, but got 1.5"),
    "nan": ({"p": float("nan")}, ValueError, "but got nan"),
    "seed": ({"seed": 2**64}, ValueError, "seed has to fit 64 bits"),
    "act": ({"act": "swish"}, ValueError, "unknown activation 'swish'"),
    "act_kwargs": ({"act_kwargs": {"alpha": 1.0}}, TypeError, "relu has no parameter 'alpha'"),
    "bias no tensor": ({"bias": 1.0}, TypeError, "argument 'bias' must be Tensor, not float"),
}


@pytest.mark.parametrize(("arguments", "error", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input(arguments, error, message):
    before = generator_state(torch.device("cpu"))
    with pytest.raises(error, match=message):
        act_dropout(torch.zeros(3, 5), **arguments)
    assert torch.equal(generator_state(torch.device("cpu")), before)


def test_bad_x():
    with pytest.raises(TypeError, match="'x' must be Tensor"):
        act_dropout(1.0)
