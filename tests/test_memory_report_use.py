"""memory_report: what must stay as it was, what is said and drawn, and bad input."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import torch
from memory_case import HIDDEN, SHAPE, sizes, two_layers, vgg
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from fusedtricks import memory_report


class Fails(nn.Module):
    """Draws random numbers, changes statistics, then raises in the given call."""

    def __init__(self, call: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*two_layers(), nn.Dropout())
        self.calls_left = [call]

    def __deepcopy__(self, memo: dict[int, Any]) -> Fails:
        other = Fails(0)
        other.layers = copy.deepcopy(self.layers, memo)
        other.calls_left = self.calls_left  # of all copies together
        return other

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        self.calls_left[0] -= 1
        if self.calls_left[0] == 0:
            raise ArithmeticError("as asked")
        return y


@pytest.mark.parametrize("call", [1, 2, 3, 9])
@pytest.mark.parametrize("place", ["real", "meta", "step"])
def test_nothing_changes(call, place, tmp_path):
    model, x = Fails(call), torch.randn(SHAPE, requires_grad=True)
    before, random, given = copy.deepcopy(model.state_dict()), torch.get_rng_state(), x.detach().clone()
    options = {"plot": tmp_path / "step.png"} if place == "step" else {}
    try:
        memory_report(model, x.to("meta") if place == "meta" else x, **options)
        assert call == 9
    except ArithmeticError:
        assert call < 9
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert torch.equal(torch.get_rng_state(), random) and torch.equal(x, given)
    assert x.grad is None and all(parameter.grad is None for parameter in model.parameters())
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert not torch.autograd._profiler_enabled()
    assert torch._C._autograd._top_saved_tensors_default_hooks(True) is None


def test_evaluation_is_reported_as_such():
    report = memory_report(two_layers().eval(), torch.randn(SHAPE))
    assert sizes(report)[0] == 2 * HIDDEN  # no statistics of the batch


def test_memory_is_released():
    made: list[StorageWeakRef] = []

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = two_layers()

        def forward(self, x: Tensor) -> Tensor:
            first, *others = self.layers
            y = first(x)
            made.append(StorageWeakRef(y.untyped_storage()))
            for layer in others:
                y = layer(y)
            return y

    report = memory_report(Model(), torch.randn(SHAPE))
    assert sizes(report)[0] > 2 * HIDDEN and len(made) == 3 and all(memory.expired() for memory in made)


def test_inputs_may_be_changed_in_place():
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 3))
    x = torch.randn(4, 3).requires_grad_() * 1
    given = x.detach().clone()
    assert memory_report(model, x).stock.measured == 0  # all that is kept are the input's places
    assert torch.equal(x, given)


TEXT = """\
kept for the backward, MB  stock  fused  recompute
(the model itself)         0.000  0.205      0.205
1                          0.205  0.000      0.000
2                          0.205  0.000      0.000
3                          0.000  0.205      0.000
total                      0.410  0.410      0.205
of stock                    1.00   1.00       0.50
not counted: parameters, buffers, and the model's inputs (0.102 MB)

recompute(depth=1) computes 1 tensor (0.205 MB) again in the backward and keeps:
  1 tensor, 0.205 MB, 100%: the output of a convolution: fused layers compute their outputs and gradients from it
  2 tensors, 0.000 MB, 0%: statistics of BatchNorm, or other small values
  2 tensors, 0.000 MB, 0%: a copy of a fused layer's weight or bias, which outputs are recomputed with"""


def test_text():
    assert str(memory_report(two_layers(), torch.empty(2, 2, 80, 80, device="meta"))) == TEXT
    assert "\nmeasured " in str(memory_report(two_layers(), torch.randn(2, 2, 80, 80)))


def test_text_without_fused_layers():
    text = str(memory_report(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), torch.randn(2, 3)))
    assert text.endswith("\n\nrecompute() changes nothing here: no output of a fused layer is kept for the backward.")


def test_reasons():
    x = torch.randn(2, 3, 16, 16)
    reasons = {kept.reason for kept in memory_report(vgg(), x).recompute.kept}
    assert "the output of a fused BatchNorm with pooling: this kind is not computed again" in reasons
    assert "indices, as of max-pooling" in reasons
    assert "the output of fused dropout: its input is not kept" in reasons
    stock = memory_report(nn.Dropout(), x.requires_grad_()).stock.kept
    assert [kept.reason for kept in stock] == ["values computed without a gradient, as dropout's random mask"]
    linear = memory_report(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)), x).recompute.kept
    assert [kept.reason for kept in linear] == ["the output of a linear layer: a layer that is not fused needs it"]


def test_plot(tmp_path):
    from matplotlib.figure import Figure

    path = tmp_path / "step.svg"
    memory_report(two_layers(), torch.randn(SHAPE), plot=path)
    assert path.read_text().count("<path") > 20
    axes = Figure().subplots()
    report = memory_report(two_layers(), torch.randn(SHAPE), plot=axes)
    lines = axes.get_lines()[:3]
    for line, account in zip(lines, report.accounts, strict=True):
        x, y = line.get_data()
        assert x[0] == 0 and x[-1] == 2 and y[0] == 0
        outputs = 2 * 3 * 25 * 4
        at_end = [size for place, size in zip(x, y, strict=True) if place == 1]
        assert at_end[0] * 1e6 == pytest.approx(account.bytes + outputs)
        assert y[-1] < at_end[0] and y[-1] > 0  # gradients are left


@pytest.mark.parametrize(
    "arguments, options, error, text",
    [
        ((torch.exp, torch.ones(2)), {}, TypeError, "argument 'model' must be torch.nn.Module, not builtin"),
        ((nn.Linear(2, 2), torch.ones(2)), {"depth": -1}, ValueError, "argument 'depth' is -1"),
        (
            (nn.Linear(2, 2), torch.ones(2)),
            {"depth": True},
            TypeError,
            "argument 'depth' must be int or None, not bool",
        ),
        (
            (nn.Linear(2, 2), torch.ones(2)),
            {"plot": 3},
            TypeError,
            "argument 'plot' must be a path or a matplotlib Axes",
        ),
        ((nn.Linear(2, 2), torch.ones(2, device="meta")), {"plot": "x.png"}, ValueError, "'plot' needs a real step"),
        ((nn.LazyLinear(2), torch.ones(2)), {}, ValueError, "lazy modules"),
        (
            (nn.Bilinear(2, 2, 2), torch.ones(2), torch.ones(2, device="meta")),
            {},
            ValueError,
            r"inputs\[1\] is on the meta device, but inputs\[0\] is not",
        ),
        (
            (nn.Linear(2, 2), [torch.ones(2, device="meta")]),
            {"mask": torch.ones(2)},
            ValueError,
            r"inputs\[0\]\[0\] is on the meta device, but mask is not",
        ),
    ],
)
def test_bad_input(arguments, options, error, text):
    with pytest.raises(error, match=text):
        memory_report(*arguments, **options)


def test_hooks_of_others():
    with (
        torch.autograd.graph.save_on_cpu(),
        pytest.raises(RuntimeError, match="hooks on saved tensors are active here"),
    ):
        memory_report(two_layers(), torch.randn(SHAPE))


def test_while_a_profiler_runs(tmp_path):
    with torch.profiler.profile():
        report = memory_report(two_layers(), torch.randn(SHAPE))
        with pytest.raises(RuntimeError, match="nothing to plot: a profiler is running"):
            memory_report(two_layers(), torch.randn(SHAPE), plot=tmp_path / "step.png")
    assert report.stock.bytes == 2 * HIDDEN + 32 and report.stock.measured is None


def test_without_matplotlib(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="plot= needs matplotlib"):
        memory_report(two_layers(), torch.randn(SHAPE), plot=tmp_path / "step.png")
