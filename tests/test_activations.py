"""Each activation on its own: values, gradients, in place, special values, strides, what is kept for backward."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as stock
from cases import (
    ACTIVATION_CASES,
    DENSE_LAYOUTS,
    LAYOUTS,
    STREAMED_SHAPES,
    each_activation,
    each_dtype,
    kinks,
    stock_module,
)
from reference import activation as reference_activation
from rounding import HALF_TYPES, assert_rounds_to
from torch import Tensor

import fusedtricks.functional as ftF
from fusedtricks import _C, eager
from fusedtricks.functional import ACTIVATIONS, activation

# The derivative is computed from the result, as in stock, so the input is not needed.
KEEP_RESULT = ["relu", "leaky_relu", "elu", "selu", "sigmoid", "tanh"]
STOCK_INPLACE = ["relu", "relu6", "leaky_relu", "elu", "selu", "silu", "mish", "hardswish", "hardsigmoid"]
INF, NAN = float("inf"), float("nan")
SPECIAL = [0.0, -0.0, INF, -INF, 1e-45, -1e-45, 1e-30, -1e-30, 88, -88, 104, -104, 1e4, -1e4, 1e37, -1e37]
Function = Callable[[Tensor], Tensor]


def gradient(function: Function, x: Tensor, dy: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(function(x), x, dy)[0]


def sweep(act: str, act_kwargs: dict[str, float]) -> Tensor:
    """A dense grid on [-20, 20] and the kinks themselves, where an elementwise op must agree with stock."""
    return torch.cat([torch.linspace(-20, 20, 20_011), torch.tensor(kinks(act, act_kwargs))])


@pytest.mark.each_isa
@each_dtype
@each_activation
def test_values(act, act_kwargs, dtype, device):
    x = sweep(act, act_kwargs).to(device, dtype)
    expected = reference_activation(x.cpu().double(), act, **act_kwargs)
    # x times a factor close to zero (gelu below -4), where stock's 1 + tanh cancels.
    assert_rounds_to(activation(x, act, **act_kwargs), expected, scale=0.1 * (1 + x.cpu().double().abs()))


@pytest.mark.each_isa
@each_dtype
@each_activation
def test_gradient(act, act_kwargs, dtype, device):
    x = sweep(act, act_kwargs).to(device, dtype)
    dy = torch.linspace(-3, 3, x.numel()).to(device, dtype)
    actual = gradient(lambda x: activation(x, act, **act_kwargs), x, dy)
    expected = gradient(lambda x: reference_activation(x, act, **act_kwargs), x.cpu().double(), dy.cpu().double())
    # A derivative computed from a rounded result has that rounding error; tanh' = 1 - y^2 doubles it.
    inexact = torch.finfo(dtype).eps if dtype in HALF_TYPES else 0.0
    # 3 is the largest dy; there are terms of x times a factor that cancels, in stock's formula and in ours.
    assert_rounds_to(actual, expected, scale=3 * (1 + x.cpu().double().abs()), inexact=inexact)


@each_activation
def test_gradgradcheck(act, act_kwargs, device):
    x = torch.linspace(-8, 8, 24, dtype=torch.float64, device=device) + 0.0137
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: activation(x, act, **act_kwargs), x)
    assert torch.autograd.gradgradcheck(lambda x: activation(x, act, **act_kwargs), x)


@each_activation
def test_gradgradcheck_in_place(act, act_kwargs, device):
    x = torch.linspace(-8, 8, 24, dtype=torch.float64, device=device) + 0.0137
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: activation(x * 1, act, inplace=True, **act_kwargs), x)
    assert torch.autograd.gradgradcheck(lambda x: activation(x * 1, act, inplace=True, **act_kwargs), x)


@pytest.mark.each_isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_every_length_from_nothing_to_several_vectors(dtype, device):
    """Tails, also after a misaligned start: every element is written, and none beyond the end."""
    buffer = torch.full((160,), NAN, dtype=dtype, device=device)
    for n in range(150):
        values = torch.linspace(-5, 5, n).to(device, dtype)
        for start in (0, 1, 3):
            buffer.fill_(NAN)
            buffer[start : start + n] = values
            activation(buffer[start : start + n], "leaky_relu", inplace=True, negative_slope=0.25)
            assert torch.equal(buffer[start : start + n], stock.leaky_relu(values, 0.25)), (n, start)
            assert buffer[:start].isnan().all() and buffer[start + n :].isnan().all(), (n, start)
        assert torch.equal(activation(values, "relu"), values.relu()), n


@pytest.mark.each_isa
@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("dtype", STREAMED_SHAPES, ids=["float32", "bfloat16"])
def test_larger_than_the_caches(dtype, start, device):
    """Forward and backward, also from a misaligned start."""
    x = torch.randn(math.prod(STREAMED_SHAPES[dtype]), device=device).to(dtype)[start:]
    for function in (lambda x: activation(x, "silu"), lambda x: activation(x * 1, "silu", inplace=True)):
        y, dx = function(x), gradient(function, x, x.cos())
        expected = stock.silu(x.double()), gradient(stock.silu, x.double(), x.cos().double())
        for actual, value in zip((y, dx), expected, strict=True):
            assert_rounds_to(actual, value, scale=value.abs() + 1)


@pytest.mark.each_isa
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("slope", [1.0, 1 / 3], ids=["exact", "rounded"])
def test_every_value_of_a_half_type(slope, dtype, device):
    """Conversions match torch's bit for bit, including subnormals and infinities."""
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).to(device)
    y = activation(-x.abs(), "leaky_relu", negative_slope=slope)
    expected = (-x.abs().float() * torch.tensor(slope)).to(dtype)
    assert torch.equal(y.isnan(), x.isnan())
    assert torch.equal(y[~x.isnan()].view(torch.int16), expected[~x.isnan()].view(torch.int16))


@each_activation
def test_special_values(act, act_kwargs, device):
    """Same as the reference wherever stock's fp32 result is usable; NaN stays NaN."""
    x = torch.tensor(SPECIAL)
    dy = torch.ones_like(x)
    module = stock_module(act, act_kwargs)

    def fused(x: Tensor) -> Tensor:
        return activation(x.to(device), act, **act_kwargs).cpu()

    def reference(x: Tensor) -> Tensor:
        return reference_activation(x, act, **act_kwargs)

    sane = ~module(x).isnan()
    expected = reference(x.double())[sane]
    # 1e-30: exponentials may stop at the smallest normal number, which mish(-88) multiplies by 88.
    assert_rounds_to(fused(x)[sane], expected, scale=expected.abs() + 1e-30)
    sane = ~gradient(module, x, dy).isnan()
    expected = gradient(reference, x.double(), dy.double())[sane]
    assert_rounds_to(gradient(fused, x, dy)[sane], expected, scale=expected.abs() + 1)
    assert fused(torch.full((9,), NAN)).isnan().all()


@pytest.mark.each_isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_gelu_has_its_limits(dtype, device):
    """At infinity, where stock multiplies infinity by zero."""
    x = torch.tensor([INF, -INF] * 9, dtype=dtype, device=device)
    y, slope = activation(x, "gelu"), gradient(lambda x: activation(x, "gelu"), x, torch.ones_like(x))
    assert (y[::2] == INF).all()
    assert (y[1::2].abs() < 1e-30).all()
    torch.testing.assert_close(slope, (x > 0).to(dtype))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("shape", [(7, 13), (5, 3, 17), (2, 3, 4, 5)], ids=["2d", "3d", "4d"])
def test_layout(shape, layout, device):
    x = layout(torch.randn(shape).to(device))
    dy = torch.randn(shape, device=device)
    torch.testing.assert_close(activation(x, "silu"), stock.silu(x))
    torch.testing.assert_close(gradient(lambda x: activation(x, "silu"), x, dy), gradient(stock.silu, x, dy))


@pytest.mark.parametrize("act", ["silu", "leaky_relu"], ids=["input_kept", "result_kept"])
@pytest.mark.parametrize("layout", DENSE_LAYOUTS)
def test_dense_strides_are_kept(layout, act, device):
    x = LAYOUTS[layout](torch.randn(2, 3, 4, 5, device=device))
    for dy in (torch.randn_like(x), torch.randn(2, 3, 4, 5, device=device)):
        assert activation(x, act).stride() == x.stride()
        assert gradient(lambda x: activation(x, act), x, dy).stride() == x.stride()


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2)], ids=str)
def test_scalar_and_empty(shape, device):
    x = torch.randn(shape, device=device)
    torch.testing.assert_close(activation(x, "gelu"), stock.gelu(x))
    torch.testing.assert_close(gradient(lambda x: activation(x, "gelu"), x, x.cos()), gradient(stock.gelu, x, x.cos()))


@each_activation
def test_in_place(act, act_kwargs, device):
    """Same values and gradients as out of place, written over the input."""
    x = torch.randn(257, device=device)
    dy = torch.randn(257, device=device)
    h = x.clone()
    y = activation(h, act, inplace=True, **act_kwargs)
    assert y is h and h._version == 1
    assert torch.equal(h, activation(x, act, **act_kwargs))
    inside = gradient(lambda x: activation(x * 1, act, inplace=True, **act_kwargs), x, dy)
    assert torch.equal(inside, gradient(lambda x: activation(x, act, **act_kwargs), x, dy))


def test_in_place_on_a_view(device):
    """Only the view's elements change; the base's gradient passes through the activation there, as in stock."""
    base = torch.randn(6, 8, device=device)
    dy = torch.randn(6, 8, device=device)

    def through(function: Function) -> Function:
        def on_base(base: Tensor) -> Tensor:
            h = base * 1
            function(h[:, 1::2])
            return h

        return on_base

    fused = through(lambda v: activation(v, "leaky_relu", inplace=True))
    expected = through(lambda v: stock.leaky_relu_(v))
    assert torch.equal(fused(base), expected(base))
    assert torch.equal(gradient(fused, base, dy), gradient(expected, base, dy))


def test_in_place_on_a_leaf_raises(device):
    leaf = torch.randn(5, device=device, requires_grad=True)
    before = leaf.detach().clone()
    with pytest.raises(RuntimeError, match="leaf"):
        activation(leaf, "relu", inplace=True)
    assert torch.equal(leaf, before)


def test_result_changed_before_backward_raises(device):
    x = torch.randn(5, device=device, requires_grad=True)
    y = activation(x, "sigmoid")
    y.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def kept_for_backward(function: Callable[[], Tensor]) -> tuple[Tensor, list[int]]:
    """The result, and the address of every tensor kept for backward."""
    kept: list[int] = []

    def pack(t: Tensor) -> Tensor:
        kept.append(t.data_ptr())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = function()
    return y, kept


@each_activation
def test_keeps_one_tensor(act, act_kwargs, device):
    x = torch.randn(64, device=device, requires_grad=True)
    y, kept = kept_for_backward(lambda: activation(x, act, **act_kwargs))
    assert len(kept) <= 1 and set(kept) <= {x.data_ptr(), y.data_ptr()}
    if act in KEEP_RESULT and all(v >= 0 for v in act_kwargs.values()):
        assert kept == [y.data_ptr()]


@pytest.mark.parametrize("act", KEEP_RESULT)
def test_keeps_nothing_beside_the_result_in_place(act, device):
    x = torch.randn(64, device=device, requires_grad=True)
    h = x * 1
    y, kept = kept_for_backward(lambda: activation(h, act, inplace=True))
    assert kept == [y.data_ptr()] == [h.data_ptr()]


def test_keeps_nothing_without_grad(device):
    x = torch.randn(64, device=device)
    assert kept_for_backward(lambda: activation(x, "silu"))[1] == []


def test_every_activation_has_a_reference():
    """The list comes from C++; a new name needs a formula in the reference and a stock counterpart in cases.py."""
    listed = {name: dict(parameters) for name, parameters in _C.activations()}
    assert listed == ACTIVATIONS
    x = torch.linspace(-3, 3, 50, dtype=torch.float64)
    for name in listed:
        torch.testing.assert_close(reference_activation(x, name), stock_module(name, {})(x))
    assert {name for name, _ in ACTIVATION_CASES} == set(listed)
    with pytest.raises((ValueError, KeyError)):
        reference_activation(x, "no_such_activation")


STOCK_CALLS = {
    "relu": lambda F, x: F.relu(x),
    "relu6": lambda F, x: F.relu6(x),
    "leaky_relu": lambda F, x: F.leaky_relu(x, 0.3),
    "elu": lambda F, x: F.elu(x, 0.7),
    "selu": lambda F, x: F.selu(x),
    "gelu": lambda F, x: F.gelu(x),
    "gelu(approximate)": lambda F, x: F.gelu(x, approximate="tanh"),
    "sigmoid": lambda F, x: F.sigmoid(x),
    "tanh": lambda F, x: F.tanh(x),
    "silu": lambda F, x: F.silu(x),
    "mish": lambda F, x: F.mish(x),
    "hardswish": lambda F, x: F.hardswish(x),
    "hardsigmoid": lambda F, x: F.hardsigmoid(x),
    "softplus": lambda F, x: F.softplus(x, 2, 3),
}


@pytest.mark.parametrize("call", STOCK_CALLS.values(), ids=STOCK_CALLS.keys())
def test_functions_with_stock_names_take_stock_arguments(call, device):
    x = torch.randn(101, device=device)
    torch.testing.assert_close(call(ftF, x), call(stock, x))


@pytest.mark.parametrize("name", STOCK_INPLACE)
def test_functions_with_stock_names_work_in_place_where_stock_does(name, device):
    x = torch.randn(101, device=device)
    h = x.clone()
    assert getattr(ftF, name)(h, inplace=True) is h
    torch.testing.assert_close(h, getattr(stock, name)(x))


AT_NAN = {"relu": 1.0, "relu6": 0.0, "leaky_relu": 0.01, "hardsigmoid": 0.0}
"""Gradients at NaN, as of stock's vector loops; of all other activations it is NaN."""


@pytest.mark.each_isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("act", [act for act in ACTIVATIONS if act != "identity"])
def test_gradient_at_nan(act, dtype, device):
    """The same for every length and place, whether a vector or the rest of a loop computes it."""
    expected = torch.tensor(AT_NAN.get(act, NAN), dtype=dtype)
    for length in (*range(1, 70), 100, 1001):
        x = torch.full((length,), NAN, dtype=dtype, device=device, requires_grad=True)
        activation(x, act).backward(torch.ones_like(x))
        assert x.grad is not None
        torch.testing.assert_close(x.grad.cpu(), expected.expand(length), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("act", [act for act in ACTIVATIONS if act != "identity"])
def test_gradient_at_nan_is_that_of_stocks_vector_loops(act):
    """Stock's loops over what is left of a tensor have other values for some activations."""
    x = torch.full((64,), NAN, requires_grad=True)
    eager.activation(x, act).sum().backward()
    assert x.grad is not None
    if act == "hardsigmoid":  # here a formula; stock's own is this
        stock.hardsigmoid(y := x.detach().requires_grad_()).sum().backward()
        x.grad = y.grad
    expected = torch.full((64,), AT_NAN.get(act, NAN))
    torch.testing.assert_close(x.grad, expected, rtol=0, atol=0, equal_nan=True)
