"""torch.func and forward-mode differentiation, which use the eager composition."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import fusedtricks.nn as ftnn
from fusedtricks.functional import activation, batch_norm_act, drop_connect_linear, dropout, fractional_max_pool2d


def batch_norm_loss(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return batch_norm_act(x, None, None, weight, bias, act="silu", training=True).square().sum()


def test_func_grad(device):
    x, w, b = (torch.randn(shape, device=device) for shape in [(4, 3, 5), (3,), (3,)])
    actual = torch.func.grad(batch_norm_loss, argnums=(0, 1, 2))(x, w, b)
    leaves = [t.requires_grad_() for t in (x, w, b)]
    torch.testing.assert_close(actual, torch.autograd.grad(batch_norm_loss(*leaves), leaves))


def test_func_vmap_of_per_sample_gradients(device):
    """In evaluation, as in stock: vmap cannot update running statistics."""
    model = nn.Sequential(ftnn.BatchNormAct1d(3, act="gelu"), ftnn.LeakyReLU(0.1)).to(device).eval()
    parameters = dict(model.named_parameters())

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(model, parameters, (x[None],)).square().sum()

    x = torch.randn(6, 3, 5, device=device)
    per_sample = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    total = torch.autograd.grad(model(x).square().sum(), list(parameters.values()))
    torch.testing.assert_close([g.sum(0) for g in per_sample.values()], list(total))


FUNCTIONS = {
    "batch_norm_act": lambda x: batch_norm_act(x, None, None, residual=x.sin(), act="silu", training=True),
    "batch_norm_act_dropout": lambda x: batch_norm_act(x, None, None, act="silu", training=True, p=0.4, seed=5),
    "activation": lambda x: activation(x, "leaky_relu", negative_slope=0.2),
    "activation_in_place": lambda x: activation(x * 1, "elu", inplace=True),
    "dropout": lambda x: dropout(x, 0.4, seed=5),
}


def finite_difference(function: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor) -> Tensor:
    step = 1e-6
    return (function(x + step * direction) - function(x - step * direction)) / (2 * step)


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_func_jvp_and_forward_mode(function, device):
    x, direction = (torch.randn(4, 3, 5, dtype=torch.float64, device=device) for _ in range(2))
    expected = finite_difference(function, x, direction)
    value, tangent = torch.func.jvp(function, (x,), (direction,))
    torch.testing.assert_close(value, function(x))
    torch.testing.assert_close(tangent, expected, rtol=1e-6, atol=1e-6)
    with forward_ad.dual_level():
        result = forward_ad.unpack_dual(function(forward_ad.make_dual(x, direction)))
    torch.testing.assert_close(result.primal, function(x))
    torch.testing.assert_close(result.tangent, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_func_grad_equals_autograd(function, device):
    x = torch.randn(4, 3, 5, dtype=torch.float64, device=device)
    actual = torch.func.grad(lambda x: function(x).square().sum())(x)
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(actual, torch.autograd.grad(function(leaf).square().sum(), leaf)[0])


def test_func_vmap_of_dropout_draws_a_mask_for_each_sample(device):
    x = torch.ones(4, 100, device=device)
    y = torch.vmap(dropout, randomness="different")(x)
    assert set(y.unique().tolist()) == {0.0, 2.0} and not torch.equal(y[0], y[1])


@pytest.mark.parametrize("name", ["activation", "dropout", "batch_norm_act"])
def test_a_tangent_is_not_lost(name, device):
    """Of a gradient whose graph was recorded outside the dual level: an error, not a gradient without tangent."""
    x = torch.randn(4, 3, 5, device=device, requires_grad=True)
    y = FUNCTIONS[name](x)
    with forward_ad.dual_level():
        dy = forward_ad.make_dual(torch.ones_like(y), torch.ones_like(y))
        with pytest.raises(NotImplementedError, match="forward-mode"):
            torch.autograd.grad(y, x, dy)
        with pytest.raises(NotImplementedError, match="forward-mode"):
            torch.ops.fusedtricks.activation(forward_ad.make_dual(x.detach(), dy.detach()), "relu", [])


VECTORISED = {
    "drop_connect_linear": (lambda x: drop_connect_linear(x, x[:2].sin(), p=0.4, seed=1) ** 2, (3, 4)),
    "fractional_max_pool2d": (lambda x: fractional_max_pool2d(x, 2, 2, act="tanh", seed=1) ** 2, (1, 2, 4, 4)),
}


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.parametrize(("function", "shape"), VECTORISED.values(), ids=VECTORISED)
def test_vectorised_jacobian_and_hessian(function, shape):
    """They batch gradients, for which torch has fewer operations."""
    x = torch.randn(shape, dtype=torch.double)
    for transform in (torch.autograd.functional.jacobian, torch.autograd.functional.hessian):
        scalar = (lambda x: function(x).sum()) if transform is torch.autograd.functional.hessian else function
        torch.testing.assert_close(transform(scalar, x, vectorize=True), transform(scalar, x))
