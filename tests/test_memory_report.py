"""memory_report: the bytes counted by hand, and those that the allocator counts."""

from __future__ import annotations

import copy

import pytest
import torch
from memory_case import HIDDEN, SEED, SHAPE, densenet, facts, resnet, sizes, two_layers, vgg
from torch import Tensor, nn

import fusedtricks
import fusedtricks.nn as ftnn
from fusedtricks import fuse, memory_report, recompute
from fusedtricks.memory.accounts import bytes_kept
from fusedtricks.stock import bytes_kept_for_backward

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


def test_time_is_linear_in_joints_that_follow_each_other():
    class Joint(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(2)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.norm(x) + x)

    model = nn.Sequential(nn.Conv2d(2, 2, 1), *(Joint() for _ in range(40)), nn.Conv2d(2, 2, 1))
    assert memory_report(model, torch.empty(SHAPE, device="meta"), depth=None).recompute.bytes


def test_of_a_compiled_model():
    model = two_layers()
    assert sizes(memory_report(torch.compile(model, backend="eager"), torch.randn(SHAPE)))[0] > 0
