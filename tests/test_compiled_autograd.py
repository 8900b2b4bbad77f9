"""Compiled autograd: the backward of eager and of compiled forwards as a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo import compiled_autograd

import fusedtricks.functional as F

X = torch.linspace(-3, 5, 2 * 4 * 6 * 6).view(2, 4, 6, 6)
ROWS = X.flatten(1)[:, :8]
CASES: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.2), X),
    "gelu": (F.gelu, X),
    "in place": (lambda x: F.silu(x * 1, inplace=True), X),
    "batch_norm_act": (lambda x: F.batch_norm_act(x, None, None, x.mean((0, 2, 3)), training=True), X),
    "batch_norm_act in evaluation": (lambda x: F.batch_norm_act(x, torch.zeros(4), torch.ones(4), act="elu"), X),
    "residual": (lambda x: F.batch_norm_act(x, None, None, residual=x.flip(0), training=True), X),
    "batch_norm_act_dropout": (lambda x: F.batch_norm_act(x, None, None, training=True, p=0.3, seed=1), X),
    "batch_norm_act_max_pool2d": (
        lambda x: F.batch_norm_act_max_pool2d(x, None, None, kernel_size=2, training=True),
        X,
    ),
    "act_dropout": (lambda x: F.act_dropout(x, x[0] * 2, x, act="gelu", p=0.3, seed=1), ROWS),
    "dropout": (lambda x: F.dropout(x, 0.3, seed=1), X),
    "dropout_": (lambda x: F.dropout(x * 1, 0.3, inplace=True, seed=1), X),
    "dropout2d": (lambda x: F.dropout2d(x, 0.3, seed=1), X),
    "drop_path": (lambda x: F.drop_path(x, 0.3, x * 2, seed=1), X),
    "fractional_max_pool2d": (lambda x: F.fractional_max_pool2d(x, 2, 3, act="tanh", seed=1), X),
    "drop_connect_linear": (lambda x: F.drop_connect_linear(x, x.repeat(2, 1), x[0, :4], 0.3, seed=1), ROWS),
    "drop_connect_conv2d": (lambda x: F.drop_connect_conv2d(x, x[:, :, :2, :2], p=0.3, seed=1), X),
    "samples": (lambda x: F.add_samples(x, F.select_samples(x, torch.tensor([1])), torch.tensor([0]), 2.0), X),
    "branch": (lambda x: torch.cat(F.branch_samples(x, torch.tensor([1]))), X),
}


def gradient(function: Callable[[Tensor], Tensor], x: Tensor, compiler: Any = None) -> Tensor:
    leaf = x.clone().requires_grad_()
    loss = function(leaf).square().sum()
    if compiler is None:
        loss.backward()
    else:
        with compiled_autograd._enable(compiler):
            loss.backward()
    assert leaf.grad is not None
    return leaf.grad


def in_eager(graph: Any) -> Any:
    return torch.compile(graph, backend="eager")


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()
    compiled_autograd.reset()


@pytest.mark.parametrize(("function", "x"), CASES.values(), ids=CASES)
def test_eager_forward(function, x):
    expected = gradient(function, x)
    for _ in range(2):  # the second time from the cache
        torch.testing.assert_close(gradient(function, x, in_eager), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["gelu", "batch_norm_act_max_pool2d", "act_dropout", "drop_connect_linear"])
def test_traced_by_aot_autograd(name):
    """Its graph is traced with tensors that have no values."""
    function, x = CASES[name]
    result = gradient(function, x, lambda graph: torch.compile(graph, backend="aot_eager", fullgraph=True))
    torch.testing.assert_close(result, gradient(function, x), rtol=1e-6, atol=1e-6)


def test_compiled_forward():
    function = torch.compile(lambda x: F.batch_norm_act(F.gelu(x), None, None, training=True), backend="aot_eager")
    torch.testing.assert_close(gradient(function, X, in_eager), gradient(function, X), rtol=1e-6, atol=1e-6)


def test_public_switch():
    x = X.clone().requires_grad_()
    loss = F.dropout(F.mish(x), 0.3, seed=1).square().sum()
    with torch._dynamo.config.patch(compiled_autograd=True):
        torch.compile(lambda: loss.backward(), backend="eager")()
    expected = gradient(lambda x: F.dropout(F.mish(x), 0.3, seed=1), X)
    torch.testing.assert_close(x.grad, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "functions",
    {
        "slope": [lambda x, s=s: F.leaky_relu(x, s) for s in (0.1, 0.7)],
        "activation": [F.elu, F.selu],
        "p": [lambda x, p=p: F.dropout(x, p, seed=1) for p in (0.2, 0.6)],
        "eps": [lambda x, e=e: F.batch_norm_act(x, None, None, training=True, eps=e) for e in (1e-5, 1.0)],
        "training": [lambda x, t=t: F.batch_norm_act(x, ZEROS, ONES, training=t) for t in (True, False)],
        "stride": [
            lambda x, s=s: F.batch_norm_act_max_pool2d(x, None, None, kernel_size=3, stride=s, training=True)[
                ..., :2, :2
            ]
            for s in (1, 2)
        ],
        "scale": [lambda x, s=s: F.add_samples(x, x[:1], torch.tensor([0]), s) for s in (1.0, 3.0)],
    }.items(),
    ids=lambda case: case[0],
)
def test_settings_are_told_apart(functions):
    """A graph that was compiled for one call is not run for another with other settings."""
    for function in functions[1]:
        torch.testing.assert_close(gradient(function, X, in_eager), gradient(function, X), rtol=1e-6, atol=1e-6)


ZEROS, ONES = torch.zeros(4), torch.ones(4)


def test_gradients_that_are_not_wanted():
    """Of weight and bias alone, and of the input alone."""
    for wanted in range(3):
        results = []
        for compiler in (None, in_eager):
            tensors = [X.clone(), torch.linspace(1, 2, 4), torch.linspace(-1, 1, 4)]
            tensors[wanted].requires_grad_()
            loss = F.batch_norm_act(tensors[0], None, None, *tensors[1:], act="tanh", training=True).square().sum()
            if compiler is None:
                loss.backward()
            else:
                with compiled_autograd._enable(compiler):
                    loss.backward()
            assert [t.grad is not None for t in tensors] == [i == wanted for i in range(3)]
            results.append(tensors[wanted].grad)
        torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)


DIFFERENTIATED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gelu": lambda x, w: F.gelu(x * w[0]),
    "batch_norm_act": lambda x, w: F.batch_norm_act(x.view(4, 4, -1), None, None, w, act="tanh", training=True),
    "batch_norm_act of a residual": lambda x, w: F.batch_norm_act(
        x.view(4, 4, -1), None, None, w, residual=x.view(4, 4, -1) * 2, act="silu", training=True
    ),
    "act_dropout": lambda x, w: F.act_dropout(x.view(-1, 4), w, act="tanh", p=0.3, seed=1),
    "fractional_max_pool2d": lambda x, w: F.fractional_max_pool2d(x * w[0], 2, 3, act="tanh", seed=1),
}


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("function", DIFFERENTIATED.values(), ids=DIFFERENTIATED)
def test_of_a_gradient(function, order, backend):
    """The gradient's own gradient: its nodes compose, and run autograd within the graph."""
    results = []
    for compiler in (None, lambda graph: torch.compile(graph, backend=backend)):
        x, w = X.clone().requires_grad_(), torch.linspace(0.5, 1, 4).requires_grad_()
        loss = function(x, w).square().sum()
        for _ in range(order - 1):
            (g,) = torch.autograd.grad(loss, x, create_graph=True)
            loss = g.square().sum()
        if compiler is None:
            loss.backward()
        else:
            with compiled_autograd._enable(compiler):
                loss.backward()
        results.append([x.grad, w.grad])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
