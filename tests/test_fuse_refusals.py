"""What fuse leaves unchanged and reports: forwards that a graph would not repeat, bad input."""

from __future__ import annotations

import copy
import random
import time
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fuse_models import Base, BasicBlock, ResNet
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as checkpoint_function

import fusedtricks
from fusedtricks.fusing.running import norms

CALLS = 0


class Chain(Base):
    """A chain, and something else next to it."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.beside(y, x)


def count() -> None:
    global CALLS
    CALLS += 1


class Coin(Chain):
    def beside(self, y: Tensor, x: Tensor) -> Tensor:
        return y + x if random.random() < 2 else y


class TensorCoin(Chain):
    def beside(self, y: Tensor, x: Tensor) -> Tensor:
        return y + x if torch.rand(1) < 2 else y


class Counter(Chain):
    def beside(self, y: Tensor, x: Tensor) -> Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        return y


class History(Chain):
    def __init__(self) -> None:
        super().__init__()
        self.history: list[int] = []

    def beside(self, y: Tensor, x: Tensor) -> Tensor:
        self.history.append(len(self.history))
        return y


class Global(Chain):
    def beside(self, y: Tensor, x: Tensor) -> Tensor:
        count()
        return y


class Prints(Chain):
    def beside(self, y: Tensor, x: Tensor) -> Tensor:
        print("forward")
        return y


class Clock(Chain):
    def beside(self, y: Tensor, x: Tensor) -> Tensor:
        return y + x if time.time() > 0 else y


class NoGradient(Chain):
    def beside(self, y: Tensor, x: Tensor) -> Tensor:
        with torch.no_grad():
            return y + x


class Autocast(Chain):
    def beside(self, y: Tensor, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.conv2(y)


class Checkpointed(Chain):
    def beside(self, y: Tensor, x: Tensor) -> Tensor:
        return torch.utils.checkpoint.checkpoint(self.conv2, y, use_reentrant=False)


class Values(Chain):
    def beside(self, y: Tensor, x: Tensor) -> Tensor:
        return y if x.sum() > 0 else y + 1


class Shapes(Chain):
    def beside(self, y: Tensor, x: Tensor) -> Tensor:
        return y if x.shape[-1] > 4 else y + 1


class OwnTensor(Chain):
    def beside(self, y: Tensor, x: Tensor) -> Tensor:
        return y + torch.ones(3)[0]


class Types(Chain):
    def beside(self, y: Tensor, x: Tensor) -> Tensor:
        return y if isinstance(y, Tensor) else y[0]


class ModeOfMember(Chain):
    def beside(self, y: Tensor, x: Tensor) -> Tensor:
        bn = self.bn2
        return F.batch_norm(y, bn.running_mean, bn.running_var, training=bn.training)


REFUSED = {
    Coin: "takes decisions by the values or shapes",
    TensorCoin: "takes decisions by the values or shapes",
    Counter: "sets an attribute (in beside)",
    History: "changes a list that it did not make, by append",
    Clock: "takes decisions by the values or shapes",
    NoGradient: "has a with statement (in beside)",
    Autocast: "has a with statement (in beside)",
    Values: "takes decisions by the values or shapes",
    Shapes: "takes decisions by the values or shapes",
    Types: "asks for the type of an intermediate value",
}


@pytest.mark.parametrize("model", REFUSED, ids=lambda m: m.__name__)
def test_forwards_that_are_left(model):
    """No chain; the reason is in the report; the attempt changes neither the model nor the generators."""
    stock = model().double()
    calls, states = CALLS, (random.getstate(), torch.get_rng_state())
    fused = fusedtricks.fuse(stock, inplace=True)
    assert states[0] == random.getstate() and torch.equal(states[1], torch.get_rng_state())
    assert calls == CALLS and not hasattr(stock, "calls") and not getattr(stock, "history", [])
    report = fusedtricks.report(fused)
    assert not report.chains
    assert REFUSED[model] in str(report), report
    assert type(fused) is model
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    expected = model().double()
    expected.load_state_dict(fused.state_dict())
    torch.testing.assert_close(fused(x), expected(x))
    if model is Counter:
        assert fused.calls == 1


@pytest.mark.parametrize("model", [Global, Prints, OwnTensor], ids=lambda m: m.__name__)
def test_effects_are_kept(model, capsys):
    """What a forward does besides is done at each call, and not by fuse."""
    stock = model().double()
    calls = CALLS
    fused = fusedtricks.fuse(stock)
    assert len(fusedtricks.report(fused).chains) == 1
    assert calls == CALLS and not capsys.readouterr().out
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(fused(x), stock(x))
    assert calls + (2 if model is Global else 0) == CALLS
    assert capsys.readouterr().out == ("forward\n" * 2 if model is Prints else "")


class CheckpointedByName(Chain):
    def beside(self, y: Tensor, x: Tensor) -> Tensor:
        return checkpoint_function(self.conv2, y, use_reentrant=False)


@pytest.mark.parametrize("model", [Checkpointed, CheckpointedByName])
def test_checkpointing_is_kept(model):
    """A function that cannot be followed is called unchanged."""
    runs = []
    stock = model().double()
    fused = fusedtricks.fuse(stock)
    assert len(fusedtricks.report(fused).chains) == 1
    fused.conv2.register_forward_pre_hook(lambda m, x: runs.append(m))
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    y = fused(x)
    y.sum().backward()
    torch.testing.assert_close(y, stock(x))
    assert len(runs) == 2


def test_the_rest_of_a_model_is_fused():
    """A part that cannot be traced does not prevent fusing the others."""
    fused = fusedtricks.fuse(nn.Sequential(BasicBlock(), Values(), BasicBlock()).double())
    report = fusedtricks.report(fused)
    assert [entry.where for entry in report.chains] == ["0", "0", "2", "2"]
    assert [(entry.where, entry.what) for entry in report.left] == [("1", "")]


def test_scripted_modules_are_left():
    stock = nn.Sequential(torch.jit.script(nn.Sequential(nn.BatchNorm2d(4), nn.ReLU())), nn.BatchNorm2d(4), nn.ReLU())
    fused = fusedtricks.fuse(stock, inplace=True)
    assert len(fusedtricks.report(fused).chains) == 1
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(fused(x), stock(x))


def test_parametrized_norm_is_fused():
    """The parametrization runs, so the weight is the module's computed one."""
    stock = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()).double()
    torch.nn.utils.parametrize.register_parametrization(stock[0], "weight", nn.Softplus())
    fused = fusedtricks.fuse(stock)
    assert len(fusedtricks.report(fused).chains) == 1
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    actual, expected = fused(x), stock(x)
    torch.testing.assert_close(actual, expected)
    original = "parametrizations.weight.original"
    gradients = [
        torch.autograd.grad(y.square().sum(), m[0].get_parameter(original))
        for y, m in ((actual, fused), (expected, stock))
    ]
    torch.testing.assert_close(*gradients)


def test_subclasses_with_a_forward_of_their_own():
    class Scaled(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * 2

    class Clipped(nn.ReLU):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input).clamp(max=1)

    stock = nn.Sequential(Scaled(4), nn.ReLU(), nn.BatchNorm2d(4), Clipped()).double()
    fused = fusedtricks.fuse(stock)
    assert [entry.what for entry in fusedtricks.report(fused).chains] == ["2 → relu"]  # what Clipped begins with
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(fused(x), stock(x))


def test_report():
    report = fusedtricks.report(fusedtricks.fuse(ResNet()))
    lines = str(report).splitlines()
    assert lines[0] == "5 chains fused, 2 layers replaced, 1 left"
    assert "  fused     layers.0  bn2 + residual → relu" in lines
    assert "  replaced  dropout                Dropout" in lines
    assert lines[-1] == "  left      layers.1.downsample  1: nothing that can be fused follows it"


@pytest.mark.parametrize("function", [fusedtricks.fuse, fusedtricks.unfuse, fusedtricks.report])
def test_what_is_no_module(function):
    with pytest.raises(TypeError, match=r"argument 'model' must be torch\.nn\.Module, not function"):
        function(F.relu)


def test_report_of_a_model_that_is_not_fused():
    with pytest.raises(ValueError, match=r"fusedtricks\.fuse\(model\) returns one that has a report"):
        fusedtricks.report(ResNet())


EXAMPLES: list[Any] = [torch.randn(3, 4, 8, 8), (torch.randn(3, 4, 8, 8),), {"x": torch.randn(3, 4, 8, 8)}]


@pytest.mark.parametrize("inputs", EXAMPLES, ids=["tensor", "tuple", "dict"])
@pytest.mark.parametrize("p", [0.0, 0.5])
def test_example_inputs(inputs, p):
    """The comparison changes neither the model nor the generator, and dropout masks do not disturb it."""
    stock = ResNet()
    stock.dropout.p = p
    before, state = copy.deepcopy(stock.state_dict()), torch.get_rng_state()
    fused = fusedtricks.fuse(stock, inplace=True, example_inputs=inputs)
    assert torch.equal(state, torch.get_rng_state())
    torch.testing.assert_close(dict(fused.state_dict()), dict(before), rtol=0, atol=0)
    assert all(p.grad is None for p in fused.parameters()) and fused.training


@pytest.mark.parametrize("wrong", ["result", "gradient", "statistics", "dtype", "no gradient"])
def test_example_inputs_show_a_difference(wrong, monkeypatch):
    correct = norms.F.batch_norm_act

    def broken(x: Tensor, running_mean: Tensor | None, *args: Any, **kwargs: Any) -> Tensor:
        y = correct(x, running_mean, *args, **kwargs)
        if wrong == "statistics" and running_mean is not None:
            running_mean += 1e-3
        results = {"result": y * (1 + 1e-6), "gradient": y.detach() + (y - y.detach()) * 1.001}
        return (results | {"dtype": y.double(), "no gradient": y.detach()}).get(wrong, y)

    monkeypatch.setattr(norms.F, "batch_norm_act", broken)
    stock = ResNet()
    with pytest.raises(RuntimeError, match="the fused model differs from the stock one"):
        fusedtricks.fuse(stock, inplace=True, example_inputs=torch.randn(3, 4, 8, 8))
    assert [type(m) for m in stock.modules()] == [type(m) for m in ResNet().modules()]


def test_example_inputs_that_do_not_fit():
    """Raises the model's own error and leaves the model unchanged."""
    stock = ResNet()
    with pytest.raises(RuntimeError, match=r"expected input.* to have 4 channels, but got 5 channels"):
        fusedtricks.fuse(stock, inplace=True, example_inputs=torch.randn(3, 5, 8, 8))
    assert [type(m) for m in stock.modules()] == [type(m) for m in ResNet().modules()]
    with pytest.raises(ValueError, match="has not been fused"):
        fusedtricks.report(stock)


def test_errors_of_the_layers_stay():
    fused = fusedtricks.fuse(nn.Sequential(nn.BatchNorm1d(4), nn.ReLU()))
    with pytest.raises(ValueError, match="expected 2D or 3D input"):
        fused(torch.randn(2, 4, 3, 3))
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        fused(torch.randn(1, 4))
    stock = nn.Sequential(nn.BatchNorm1d(4), nn.ReLU())
    for model in (fused, stock):
        with pytest.raises(RuntimeError):
            model(torch.ones(3, 4, dtype=torch.int64))
