"""memory_report: the bytes counted by hand, those that the allocator counts, and what must stay as it was."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

import fusedtricks
import fusedtricks.nn as ftnn
from fusedtricks import fuse, memory_report, recompute
from fusedtricks.memory import MemoryReport
from fusedtricks.memory.accounts import Account, bytes_kept
from fusedtricks.stock import bytes_kept_for_backward

SHAPE = (2, 2, 5, 5)
HIDDEN = 2 * 4 * 5 * 5 * 4  # bytes of what is between the two convolutions
SEED = 16


def two_layers() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 3, 1, bias=False)
    )


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + x)


class DenseLayer(nn.Module):
    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm, self.relu = nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(channels, growth, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.conv(self.relu(self.norm(torch.cat(features, 1))))


class DenseBlock(nn.Module):
    def __init__(self, channels: int, growth: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([DenseLayer(channels + i * growth, growth) for i in range(layers)])

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(features))
        return torch.cat(features, 1)


def stem(channels: int) -> list[nn.Module]:
    return [nn.Conv2d(3, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(inplace=True), nn.MaxPool2d(2)]


def head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(channels, 5)]


def vgg() -> nn.Module:
    middle = [nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True)]
    last = [nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    return nn.Sequential(*stem(8), *middle, *last, *head(16))


def resnet() -> nn.Module:
    return nn.Sequential(*stem(8), *[Residual(8) for _ in range(4)], *head(8))


def densenet() -> nn.Module:
    transition = [nn.BatchNorm2d(24), nn.ReLU(inplace=True), nn.Conv2d(24, 12, 1), nn.AvgPool2d(2)]
    return nn.Sequential(
        *stem(8), DenseBlock(8, 4, 4), *transition, DenseBlock(12, 4, 4), nn.BatchNorm2d(28), *head(28)
    )


def sizes(report: MemoryReport) -> list[int]:
    return [account.bytes for account in report.accounts]


def facts(account: Account) -> list[tuple[Any, ...]]:
    return [(kept.layers, kept.producer, kept.shape, kept.bytes) for kept in account.kept if len(kept.shape) > 1]


# --- What is counted ---


COPIES = 2 * 4 * 4  # of weight and bias, for the recipe


def test_counted_by_hand():
    report = memory_report(two_layers(), torch.randn(SHAPE))
    hidden, statistics, exact_statistics = (2, 4, 5, 5), 2 * 4 * 4, 2 * 4 * 8
    assert facts(report.stock) == [
        (("1",), "ConvolutionBackward0", hidden, HIDDEN),
        (("2", "3"), "ReluBackward0", hidden, HIDDEN),  # one memory, kept by two
    ]
    assert report.stock.bytes == 2 * HIDDEN + statistics
    assert facts(report.fused) == [
        (("",), "ConvolutionBackward0", hidden, HIDDEN),
        (("3",), "batch_norm_act_gradient", hidden, HIDDEN),
    ]
    assert report.fused.bytes == 2 * HIDDEN + exact_statistics
    assert facts(report.recompute) == [(("",), "ConvolutionBackward0", hidden, HIDDEN)]
    assert report.recompute.bytes == HIDDEN + exact_statistics + COPIES
    assert [(kept.layers, kept.bytes) for kept in report.recompute.recomputed] == [(("3",), HIDDEN)]
    assert report.recompute.recomputed_bytes == HIDDEN
    for account in report.accounts:
        assert account.measured == account.bytes
        assert [(kept.producer, kept.layers, kept.bytes) for kept in account.inputs] == [
            ("input", ("0",), 2 * 2 * 25 * 4)
        ]


@pytest.mark.parametrize("make", [vgg, resnet, densenet])
def test_agrees_with_the_allocator_and_with_meta(make):
    model, x = make(), torch.randn(4, 3, 64, 64)
    report, on_meta = memory_report(model, x), memory_report(model, x.to("meta"))
    for account, described in zip(report.accounts, on_meta.accounts, strict=True):
        print(f"{make.__name__}: counted {account.bytes}, measured {account.measured}")
        assert account.measured is not None
        assert account.measured / account.bytes == pytest.approx(1, abs=0.05)
        assert described.bytes == account.bytes and described.measured is None
        assert facts(described) == facts(account)
    assert report.stock.bytes >= report.fused.bytes > report.recompute.bytes


def test_depth():
    deep = {
        depth: memory_report(resnet(), torch.empty(2, 3, 16, 16, device="meta"), depth=depth)
        for depth in (0, 1, 2, None)
    }
    assert len({report.fused.bytes for report in deep.values()}) == 1
    joint = 2 * 8 * 8 * 8 * 4 - 2 * 8 * 4  # its recipe has copies of weight and bias
    least = deep[None].recompute.bytes
    assert deep[0].recompute.bytes - least == 4 * joint
    assert deep[1].recompute.bytes - least == 2 * joint
    assert deep[2].recompute.bytes - least == joint
    assert "depth=1 keeps every other one of a row" in str(deep[1])
    assert "residual joint" not in str(deep[None])


@pytest.mark.parametrize("make", [lambda x: x, lambda x: x.to("meta")], ids=["real", "meta"])
@pytest.mark.parametrize(
    "dropout",
    [
        nn.Dropout(0.3),
        nn.Dropout2d(0.3),
        nn.AlphaDropout(0.3),
        nn.FeatureAlphaDropout(0.3),
        ftnn.Dropout(0.3),
        ftnn.StochasticDepth(nn.Identity(), 0.3),
    ],
    ids=lambda module: type(module).__name__,
)
def test_dropout_keeps_a_seed_at_most(dropout, make):
    x = make(torch.randn(4, 8, 6, 6).requires_grad_())
    report = memory_report(dropout, x)
    for account in (report.fused, report.recompute):
        assert [(kept.bytes, kept.dtype) for kept in account.kept] == [(SEED, torch.int64)]
        assert "seed" in account.kept[0].reason
    assert report.stock.kept and all(not kept.producer for kept in report.stock.kept)  # masks


@pytest.mark.parametrize("layer", [nn.Linear(8, 8), nn.Conv2d(6, 6, 1)], ids=lambda module: type(module).__name__)
def test_relu_and_dropout_keep_what_the_next_layer_keeps(layer):
    model = nn.Sequential(layer, nn.ReLU(), nn.Dropout(0.5), copy.deepcopy(layer))
    report = memory_report(model, torch.randn(4, 6, 6, 8))
    size = 4 * 6 * 6 * 8 * 4
    assert [(kept.layers[-1], kept.bytes) for kept in report.fused.kept] == [("3", size)]
    assert sizes(report) == [3 * size, size, size]  # stock: the activation, its mask, the product


def test_nothing_is_kept_without_gradients():
    report = memory_report(two_layers().requires_grad_(False), torch.randn(SHAPE))
    assert sizes(report) == [0, 0, 0] and [account.measured for account in report.accounts] == [0, 0, 0]
    assert "recompute() changes nothing here" in str(report)


@pytest.mark.parametrize(
    "around", [torch.no_grad, torch.inference_mode, recompute], ids=["no_grad", "inference", "recompute"]
)
def test_what_is_around_the_call_does_not_matter(around):
    model, expected = two_layers(), memory_report(two_layers(), torch.randn(SHAPE))
    with around():
        report = memory_report(model, torch.randn(SHAPE))
    assert sizes(report) == sizes(expected)


def test_fused_models_are_reported_as_others():
    model, x = two_layers(), torch.randn(SHAPE)
    expected = memory_report(model, x)
    for fused in (fuse(model), fuse(model, recompute=True), fusedtricks.to_fused(model)):
        assert sizes(memory_report(fused, x)) == sizes(expected)


class Recomputing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = fuse(two_layers())

    def forward(self, x: Tensor) -> Tensor:
        with recompute(depth=0):
            return self.layers(x)


def test_recompute_in_the_model_is_looked_at_too():
    report = memory_report(Recomputing(), torch.randn(SHAPE))
    assert sizes(report) == sizes(memory_report(two_layers(), torch.randn(SHAPE)))


class Discards(nn.Module):
    """Computes something with a gradient, and lets go of it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(50, 50))

    def forward(self, x: Tensor) -> Tensor:
        (self.weight.exp() * 2).sin()
        return (x * self.weight).tanh()


def test_what_is_freed_before_the_end_is_not_counted():
    report = memory_report(Discards(), torch.randn(50, 50))
    assert sizes(report) == [50 * 50 * 4] * 3  # tanh's result
    assert [account.measured for account in report.accounts] == sizes(report)


class SharesMemory(nn.Module):
    """The last layer would compute the hidden features again, but a product keeps them anyway."""

    def __init__(self) -> None:
        super().__init__()
        *first, self.last = two_layers()
        self.first, self.weight = nn.Sequential(*first), nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.last(y).sum() + (self.weight * y.detach()).sum()


def test_what_is_kept_by_somebody_is_not_said_to_be_recomputed():
    report = memory_report(SharesMemory(), torch.randn(SHAPE))
    assert report.recompute.bytes == report.recompute.measured == report.fused.bytes + COPIES
    assert not report.recompute.recomputed


def test_nested_inputs_and_outputs():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, images: dict[str, Tensor], *, masks: list[Tensor]) -> dict[str, Tensor]:
            y = self.layer(images["x"]) * masks[0]
            return {"y": y.exp(), "z": y}

    report = memory_report(Model(), {"x": torch.ones(2, 3)}, masks=[torch.ones(2, 3)])
    assert [kept.producer for kept in report.stock.kept] == ["ExpBackward0"]
    assert [kept.producer for kept in report.stock.inputs] == ["input", "input"]
    assert report.stock.measured == report.stock.bytes == 2 * 3 * 4


def test_meta_allocates_nothing():
    class Huge(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1).expand(1 << 20, 1 << 20))  # 4 TB, were it copied

        def forward(self, x: Tensor) -> Tensor:
            return (x @ self.weight).tanh()

    report = memory_report(Huge(), torch.empty(1 << 20, 1 << 20, device="meta"))
    assert sizes(report) == [1 << 42] * 3


def test_one_count_for_everybody():
    model, x = two_layers(), torch.randn(SHAPE)
    report, given = memory_report(model, x), x.nbytes
    assert bytes_kept_for_backward(model, x) == report.stock.bytes + given
    assert bytes_kept_for_backward(fuse(model), x) == report.fused.bytes + given
    assert bytes_kept_for_backward(fuse(model, recompute=True), x) == report.recompute.bytes + given
    assert bytes_kept(fuse(model), x, recompute=None) == report.recompute.bytes + given
    assert bytes_kept(torch.exp, x.requires_grad_()) == x.nbytes


# --- What stays ---


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


# --- What is said ---

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


# --- The plot ---


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


# --- Bad input ---


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


def test_of_a_compiled_model():
    model = two_layers()
    assert sizes(memory_report(torch.compile(model, backend="eager"), torch.randn(SHAPE)))[0] > 0


def test_time_is_linear_in_joints_that_follow_each_other():
    class Joint(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(2)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.norm(x) + x)

    model = nn.Sequential(nn.Conv2d(2, 2, 1), *(Joint() for _ in range(40)), nn.Conv2d(2, 2, 1))
    assert memory_report(model, torch.empty(SHAPE, device="meta"), depth=None).recompute.bytes
