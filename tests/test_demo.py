"""The demo: it passes its checks, says so, plots, and fails if the fused layers are wrong."""

import importlib.util
import math
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from fusedtricks import demo, functional
from fusedtricks.demo.drift import check_curves
from fusedtricks.demo.training import Learner, Settings
from fusedtricks.nn import BatchNormAct2d

SHORT = ["--epochs", "1", "--images", "96", "--batch-size", "32", "--double-steps", "2"]


@pytest.fixture(autouse=True)
def one_thread():
    """The tensors are small: more threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "options", [[], ["--channels-last", "--dropout", "0.3"]], ids=["plain", "channels_last-dropout"]
)
def test_demo_agrees_and_draws(options, tmp_path, capsys):
    picture = tmp_path / "curves.png"
    assert demo.main([*SHORT, *options, "--out", str(picture)]) == 0
    printed = capsys.readouterr().out
    assert "DIVERGE" not in printed and "kept for backward" in printed and "training step" in printed
    assert picture.read_bytes().startswith(b"\x89PNG")


def leaky(layer: BatchNormAct2d, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """The layer with another activation."""
    with patch.object(layer, "act", "leaky_relu"):
        return FORWARD(layer, x, residual)


def coarse_float32(layer: BatchNormAct2d, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """The layer, but its output is 2 % too large in float32 only."""
    y = FORWARD(layer, x, residual)
    return y * 1.02 if x.dtype == torch.float32 else y


def coarse_gradient(layer: BatchNormAct2d, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """The layer, but the gradient of its input is 2 % too large in float32 only."""
    if x.dtype == torch.float32 and x.requires_grad:
        x = x.clone()
        x.register_hook(lambda gradient: 1.02 * gradient)
    return FORWARD(layer, x, residual)


def stale(layer: BatchNormAct2d, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """The layer, but in float32 training it divides by the cached standard deviation of its first batch."""
    if x.dtype != torch.float32 or not layer.training:
        return FORWARD(layer, x, residual)
    deviation = x.detach().std((0, 2, 3))
    weight = layer.weight * deviation / layer.__dict__.setdefault("deviation", deviation)
    buffers = (layer.running_mean, layer.running_var.detach())
    options = {"act": layer.act, "training": True, "num_batches_tracked": layer.num_batches_tracked}
    return functional.batch_norm_act(x, *buffers, weight, layer.bias, residual, **options)


def coarse_statistics(layer: BatchNormAct2d, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """The layer, but in float32 the variance that updates its running statistics is 3 % too large."""
    before = layer.running_var.clone()
    y = FORWARD(layer, x, residual)
    if x.dtype == torch.float32 and layer.training:
        layer.running_var += 0.03 * (layer.running_var - 0.9 * before)
    return y


FORWARD = BatchNormAct2d.forward
DOUBLE, STEPS, LOSSES, GRADIENTS = (
    "float64: ",
    "float32: largest",
    "float32: drift of the losses",
    "float32: drift of the g",
)


def verdicts(printed: str) -> dict[str, bool]:
    """Whether each check passed, keyed by the beginning of its line."""
    lines = printed.splitlines()
    return {
        check: line.endswith(": agree")
        for check in (DOUBLE, STEPS, LOSSES, GRADIENTS)
        for line in lines
        if line.startswith(check)
    }


@pytest.mark.parametrize(
    ("wrong", "layout", "seen", "unseen"),
    [
        (leaky, [], {DOUBLE, STEPS, LOSSES, GRADIENTS}, set()),
        (coarse_float32, [], {STEPS, LOSSES}, {DOUBLE}),
        (coarse_gradient, [], {STEPS, GRADIENTS}, {DOUBLE}),
        (coarse_statistics, [], {STEPS}, {DOUBLE, LOSSES, GRADIENTS}),
        (stale, [], {LOSSES, GRADIENTS}, {DOUBLE, STEPS}),
        (stale, ["--channels-last"], {LOSSES, GRADIENTS}, {DOUBLE, STEPS}),
    ],
)
def test_demo_fails_where_the_layers_are_wrong(wrong, layout, seen, unseen, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(BatchNormAct2d, "forward", wrong)
    assert demo.main([*SHORT, *layout, "--out", str(tmp_path / "curves.png")]) == 1
    found = verdicts(capsys.readouterr().out)
    assert len(found) == 4
    assert not any(found[check] for check in seen) and all(found[check] for check in unseen)


def learner(losses: list[float], dropout: float = 0.0) -> Learner:
    """A learner with these losses, and gradient norms of 1."""
    norms = [1.0] * len(losses)
    parameters = nn.Linear(1, 1)
    return Learner("", parameters, Settings(dropout=dropout), 10, losses=losses, gradient_norms=norms)


@pytest.mark.parametrize(
    ("fused", "passes"),
    [
        ([1.0, 1.001, 1.02, 1.1], True),
        ([1.0, 1.01, 1.02, 1.1], False),  # early
        ([1.0, 1.001, 1.02, 2.3], False),  # late
        ([1.0, 1.001, 1.02, math.nan], False),
    ],
)
def test_drift_is_bounded_by_that_of_nudged_stock(fused, passes):
    nudged = [learner([1.0, 1.0005, 1.0, 1.05]), learner([1.0, 1.001, 1.01, 0.9])]
    losses, gradients = check_curves(learner([1.0] * 4), learner(fused), nudged)
    assert losses.passed == passes and gradients.passed


def test_drift_with_dropout_is_that_of_the_whole_training():
    """A first step that differs by chance does not count."""
    curves = {"stock": [1.0, 1.0, 1.0], "fused": [1.2, 1.1, 1.1], "nudged": [1.01, 1.1, 0.8]}
    for dropout, passes in ((0.0, False), (0.5, True)):
        stock, fused, nudged = (learner(curve, dropout) for curve in curves.values())
        assert check_curves(stock, fused, [nudged])[0].passed == passes


def test_demo_names_the_missing_extra(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert demo.main([]) == 2
    assert 'pip install "fusedtricks[demo]"' in capsys.readouterr().err
