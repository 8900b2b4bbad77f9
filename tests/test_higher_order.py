"""Derivatives of third and higher order: the backward of each operator is differentiated twice."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fusedtricks.functional as F
import fusedtricks.nn as fnn
from fusedtricks import eager

ACTS: list[tuple[str, dict[str, float]]] = [
    *[(act, {}) for act in F.ACTIVATIONS],
    ("leaky_relu", {"negative_slope": -0.3}),  # these keep their input instead of their result
    ("elu", {"alpha": -0.7}),
    ("softplus", {"beta": 2.0, "threshold": 3.0}),
]
each_act = pytest.mark.parametrize(("act", "act_kwargs"), ACTS, ids=str)


def points(*shape: int, seed: int = 0) -> Tensor:
    """Away from the kinks at 0, 6 and ±3."""
    torch.manual_seed(seed)
    x = 4 * torch.randn(shape, dtype=torch.double)
    for kink in (-3, 0, 1.5, 3, 6):
        x = torch.where((x - kink).abs() < 0.05, x + 0.1, x)
    return x.requires_grad_()


def backward(function: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    """The gradients of a weighted sum, differentiable."""
    y = function(*inputs)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    return torch.autograd.grad(y, inputs, weights, create_graph=True)


def check_third_derivatives(function: Callable[..., Tensor], *inputs: Tensor) -> None:
    assert torch.autograd.gradgradcheck(partial(backward, function), inputs, fast_mode=True, atol=1e-4)


def repeated(function: Callable[[Tensor], Tensor], x: Tensor, order: int) -> Tensor:
    """The derivative of that order of an elementwise function."""
    y = function(x)
    for _ in range(order):
        (y,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    return y


@each_act
@pytest.mark.parametrize("inplace", [False, True])
def test_activations(act, act_kwargs, inplace):
    check_third_derivatives(lambda x: F.activation(x * 1, act, inplace=inplace, **act_kwargs), points(12))


@pytest.mark.parametrize("act", ["gelu", "gelu_tanh", "sigmoid", "tanh", "silu", "mish", "elu", "softplus", "selu"])
@pytest.mark.parametrize("order", [3, 4, 5])
def test_any_order(act, order):
    """The same as of stock's formulas, far out as well: nothing turns NaN."""
    far = torch.tensor([-800.0, -95, -30, 30, 95, 800], dtype=torch.double)
    x = torch.cat([points(20).detach(), far]).requires_grad_()
    y = repeated(lambda t: F.activation(t, act), x, order)
    near = x.detach()[:20].requires_grad_()
    torch.testing.assert_close(y[:20], repeated(lambda t: eager.activation(t, act), near, order), rtol=1e-6, atol=1e-8)
    assert (y[20:].abs() < 1e-5).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes(dtype):
    """Third derivatives in the input's dtype."""
    x = points(10).detach().to(dtype).requires_grad_()
    exact = x.detach().double().requires_grad_()
    y, expected = repeated(F.silu, x, 3), repeated(nn.functional.silu, exact, 3)
    assert y.dtype is dtype
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=0.02 if dtype is not torch.float32 else 1e-5)


BATCH_NORMS = {"training": True, "evaluation": False}


@pytest.mark.parametrize("training", BATCH_NORMS.values(), ids=BATCH_NORMS)
@pytest.mark.parametrize("p", [0.0, 0.4], ids=["", "dropout"])
@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("act", ["identity", "relu", "tanh", "silu"])
def test_batch_norm(act, residual, p, training):
    mean, var = torch.tensor([0.1, -0.2, 0.3]).double(), torch.tensor([0.5, 1.5, 2.0]).double()

    def function(x: Tensor, weight: Tensor, bias: Tensor, r: Tensor | None = None) -> Tensor:
        statistics = (None, None) if training else (mean, var)
        return F.batch_norm_act(x, *statistics, weight, bias, r, act=act, training=training, p=p, seed=1)

    tensors = [points(4, 3, 2), points(3, seed=1), points(3, seed=2), points(4, 3, 2, seed=3)]
    check_third_derivatives(function, *tensors[: 4 if residual else 3])


def batch_norm_by_formula(x: Tensor) -> Tensor:
    centred = x - x.mean(0)
    return torch.tanh(centred * (centred.square().mean(0) + 1e-5) ** -0.5)


def test_third_derivatives_of_batch_norm_in_training():
    """As of the formula; stock's are wrong (torch 2.13)."""
    direction = points(5, 3, seed=1).detach()

    def third(function: Callable[[Tensor], Tensor]) -> Tensor:
        x = points(5, 3)
        y = function(x)
        for _ in range(3):
            (g,) = torch.autograd.grad((y * direction).sum(), x, create_graph=True)
            y = g
        return y

    ours = third(lambda x: F.batch_norm_act(x, None, None, act="tanh", training=True))
    torch.testing.assert_close(ours, third(batch_norm_by_formula), rtol=1e-8, atol=1e-8)


OTHERS: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "act_dropout": (lambda x, b, r: F.act_dropout(x, b, r, act="gelu", p=0.3, seed=1), [(4, 3), (3,), (4, 3)]),
    "act_dropout of a result": (lambda x, b: F.act_dropout(x, b, act="tanh", p=0.3, seed=1), [(4, 3), (3,)]),
    "act_dropout in evaluation": (lambda x, b: F.act_dropout(x, b, act="tanh", training=False), [(4, 3), (3,)]),
    "dropout": (lambda x: F.dropout(x, 0.3, seed=1) ** 4, [(4, 3)]),
    "alpha_dropout": (lambda x: F.alpha_dropout(x, 0.3, True, seed=1) ** 4, [(4, 3)]),
    "dropout2d": (lambda x: F.dropout2d(x, 0.3, seed=1) ** 4, [(2, 3, 2, 2)]),
    "drop_path": (lambda x, r: F.drop_path(x, 0.3, r, seed=1) ** 4, [(4, 3), (4, 3)]),
    "max_pool": (
        lambda x, w, b: F.batch_norm_act_max_pool2d(
            x, None, None, w, b, kernel_size=2, act="tanh", training=True, momentum=0.1
        ),
        [(2, 3, 4, 4), (3,), (3,)],
    ),
    "fractional": (lambda x: F.fractional_max_pool2d(x, 2, 2, act="tanh", seed=1), [(2, 3, 5, 5)]),
    "drop_connect": (lambda x, w, b: F.drop_connect_linear(x, w, b, 0.3, seed=1) ** 3, [(4, 3), (2, 3), (2,)]),
    "drop_connect_conv": (
        lambda x, w, b: F.drop_connect_conv2d(x, w, b, p=0.3, seed=1) ** 3,
        [(1, 2, 4, 4), (2, 2, 2, 2), (2,)],
    ),
    "samples": (
        lambda x, r: F.add_samples(x, F.select_samples(r, torch.tensor([2, 0])), torch.tensor([1, 3])) ** 4,
        [(4, 3), (4, 3)],
    ),
    "branch": (lambda x: torch.cat(F.branch_samples(x, torch.tensor([2, 0]))) ** 4, [(4, 3)]),
}


@pytest.mark.parametrize(("function", "shapes"), OTHERS.values(), ids=OTHERS)
def test_other_operators(function, shapes):
    check_third_derivatives(function, *[points(*shape, seed=i) for i, shape in enumerate(shapes)])


@pytest.mark.parametrize("kind", ["Tanh", "SiLU", "GELU", "Softplus", "Mish", "ELU", "Sigmoid"])
def test_physics_informed_network(kind):
    """A loss on u_xx: three derivatives of the activation."""

    def gradients(library: Any) -> list[Tensor]:
        torch.manual_seed(0)
        act = getattr(library, kind)
        net = nn.Sequential(nn.Linear(2, 8), act(), nn.Linear(8, 8), act(), nn.Linear(8, 1)).double()
        x = torch.linspace(-1, 1, 12, dtype=torch.double).view(6, 2).requires_grad_()
        (g,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(g[:, 0].sum(), x, create_graph=True)
        (g[:, 1] - 0.1 * second[:, 0]).square().mean().backward()
        return [parameter.grad for parameter in net.parameters() if parameter.grad is not None]

    torch.testing.assert_close(gradients(fnn), gradients(nn), rtol=1e-7, atol=1e-10)
