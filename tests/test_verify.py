"""`example_inputs` of `fuse`: rounding passes, however far a deep model carries it, and a wrong gradient does not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fusedtricks
from fusedtricks import functional
from fusedtricks.fusing import verify


class NoDouble(nn.Module):
    """Refuses float64, so that the whole model is compared in its own precision."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float64:
            raise TypeError("not in float64")
        return x


def first(castable: bool) -> nn.Module:
    return nn.Identity() if castable else NoDouble()


def small_network(castable: bool) -> nn.Module:
    return nn.Sequential(
        first(castable),
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.SiLU(),
        nn.Conv2d(8, 8, 3),
        nn.BatchNorm2d(8),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def chaotic_network(castable: bool) -> nn.Module:
    """As the end of inception_v3 on small images: BatchNorm over two values a channel, many times.

    Each divides by a standard deviation that is as small as chance makes it; kinks do the rest.
    """
    blocks = [[nn.Conv2d(64, 64, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()] for _ in range(8)]
    return nn.Sequential(first(castable), *[layer for block in blocks for layer in block])


@pytest.mark.parametrize("castable", [True, False], ids=["float64", "own precision"])
def test_rounding_of_a_chaotic_model_passes(castable):
    for seed in range(3):
        torch.manual_seed(seed)
        fusedtricks.fuse(chaotic_network(castable), example_inputs=torch.randn(2, 64, 1, 1))


def test_the_chaotic_model_is_chaotic(monkeypatch):
    """Without the comparison of stock with itself, it fails."""
    monkeypatch.setattr(verify, "_TIMES", 0)
    with pytest.raises(RuntimeError, match="differs from the stock one"):
        for seed in range(6):
            torch.manual_seed(seed)
            fusedtricks.fuse(chaotic_network(castable=False), example_inputs=torch.randn(2, 64, 1, 1))


class Skewed(torch.autograd.Function):
    """The identity, whose gradient is wrong by one per cent."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 1.01


@pytest.mark.parametrize("argument", ["input", "weight", "bias"])
@pytest.mark.parametrize("castable", [True, False], ids=["float64", "own precision"])
def test_a_gradient_that_is_wrong_by_one_per_cent_is_found(castable, argument, monkeypatch):
    right = functional.batch_norm_act
    position = {"input": 0, "weight": 3, "bias": 4}[argument]

    def wrong(*arguments, **settings):
        skewed = list(arguments)
        skewed[position] = Skewed.apply(skewed[position])
        return right(*skewed, **settings)

    model = small_network(castable)
    monkeypatch.setattr(functional, "batch_norm_act", wrong)
    with pytest.raises(RuntimeError, match="gradients, in training"):
        fusedtricks.fuse(model, example_inputs=torch.randn(4, 3, 12, 12))
    monkeypatch.undo()
    fusedtricks.fuse(model, example_inputs=torch.randn(4, 3, 12, 12))


@pytest.mark.parametrize("gain", [1e-2, 1e-3])
def test_a_small_gradient_that_is_wrong_is_found_beside_large_ones(gain, monkeypatch):
    right = functional.batch_norm_act

    def wrong(*arguments, **settings):
        return right(*arguments[:3], Skewed.apply(arguments[3]), *arguments[4:], **settings)

    model = small_network(castable=False)
    with torch.no_grad():
        model[-1].weight.mul_(gain)
    fusedtricks.fuse(model, example_inputs=torch.randn(4, 3, 12, 12))
    monkeypatch.setattr(functional, "batch_norm_act", wrong)
    with pytest.raises(RuntimeError, match="gradients, in training"):
        fusedtricks.fuse(model, example_inputs=torch.randn(4, 3, 12, 12))


def test_gradients_that_stock_makes_exactly_zero_may_be_rounding():
    """Those of a bias before BatchNorm over two values: the two cancel, in whichever order stock adds them."""
    for seed in range(6):
        torch.manual_seed(seed)
        layers = [[nn.Conv2d(32, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()] for _ in range(3)]
        plain = [nn.Conv2d(32, 32, 1, bias=False), nn.BatchNorm2d(32)]
        model = nn.Sequential(NoDouble(), *layers[0], *plain, *layers[1], *layers[2])
        fusedtricks.fuse(model, example_inputs=torch.randn(2, 32, 1, 1))


def test_constants_that_stock_rounds_to_float32_pass():
    """The gradient of Hardsigmoid beside larger ones."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Hardsigmoid(), nn.BatchNorm1d(4), nn.ReLU())
    for seed in range(3):
        torch.manual_seed(seed)
        fusedtricks.fuse(model, example_inputs=torch.randn(8, 4))


class Doubles(torch.autograd.Function):
    """Twice the input, with a backward for float32 only."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        if gradient.dtype != torch.float32:
            raise TypeError("not in float64")
        return 2 * gradient


@pytest.mark.parametrize("what", ["training", "backward"])
def test_models_that_float64_stops_later(what):
    class Stops(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x).relu()
            if what == "backward":
                return Doubles.apply(y)
            if self.training and y.dtype != torch.float32:
                raise TypeError("not in float64")
            return y

    for training in (True, False):
        fusedtricks.fuse(Stops().train(training), example_inputs=torch.randn(2, 3, 4, 4))


def test_what_training_moves_far_does_not_hide_evaluation(monkeypatch):
    right = functional.batch_norm_act

    def wrong(*arguments, training, **settings):
        skewed = arguments[3] if training else Skewed.apply(arguments[3])
        return right(*arguments[:3], skewed, *arguments[4:], training=training, **settings)

    monkeypatch.setattr(functional, "batch_norm_act", wrong)
    torch.manual_seed(0)
    with pytest.raises(RuntimeError, match="gradients, in evaluation"):
        fusedtricks.fuse(chaotic_network(castable=False), example_inputs=torch.randn(2, 64, 1, 1))


def test_a_wrong_result_is_found_where_whole_numbers_decide(monkeypatch):
    """The other roundings leave whole numbers alone: an input that is an index does not become another one."""

    class Chosen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(10, 6))
            self.norm = nn.BatchNorm1d(6)

        def forward(self, index: Tensor) -> Tensor:
            return self.norm(self.table[index.long()]).relu()

    right = functional.batch_norm_act

    def wrong(*arguments, **settings):
        return right(*arguments, **settings) * 1.01

    index = torch.tensor([7.0, 1.0, 3.0, 3.0])
    fusedtricks.fuse(Chosen(), example_inputs=index)
    monkeypatch.setattr(functional, "batch_norm_act", wrong)
    with pytest.raises(RuntimeError, match="results, in training"):
        fusedtricks.fuse(Chosen(), example_inputs=index)
