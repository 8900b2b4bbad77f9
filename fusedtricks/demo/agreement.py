"""How closely training with the fused layers follows training with the stock ones, and how closely it must.

A ReLU whose input is within rounding of zero may pass its gradient on one side and stop it on the other. From
then on two float32 runs drift apart: in 12 pairs of stock runs that started one unit in the last place from
each other, the mean losses of later epochs differed by up to a third. So curves in float32 can agree only as
well as stock agrees with itself, and a mistake is told from rounding where nothing drifts: in float64, and in
single steps from one and the same state.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..stock import FUSED, STOCK
from .data import Digits
from .training import Learner, Settings, build_network, train_side_by_side

DOUBLE_LOSS_BOUND = 1e-6
STEP_BOUND = 5e-3
CURVE_BOUND = 2.0


@dataclass(frozen=True)
class Check:
    """A measured difference and the largest one that passes; NaN does not pass."""

    what: str
    measured: float
    bound: float

    @property
    def passed(self) -> bool:
        return self.measured <= self.bound

    def __str__(self) -> str:
        verdict = "agree" if self.passed else "DIVERGE"
        return f"{self.what}: {self.measured:.1e} (at most {self.bound:.0e}): {verdict}"


def check_double(data: Digits, settings: Settings, steps: int, after_step: Callable[[], object]) -> Check:
    """Compares the losses of some steps in float64, from one initialisation and without dropout."""
    settings = replace(settings, dropout=0.0, epochs=1)
    rows = slice(0, steps * settings.batch_size)
    data = replace(
        data,
        train_images=data.train_images[rows].double(),
        train_labels=data.train_labels[rows],
        test_images=data.test_images[:1].double(),
        test_labels=data.test_labels[:1],
    )
    first = build_network(STOCK, settings)
    second = build_network(FUSED, settings, first)
    stock = Learner("stock", first.double(), settings, steps)
    fused = Learner("fused", second.double(), settings, steps)
    train_side_by_side((stock, fused), data, settings, after_step)
    what = f"float64, {steps} steps from one initialisation, largest difference of the losses"
    return Check(what, largest_difference(stock.losses, fused.losses), DOUBLE_LOSS_BOUND)


class StepComparison:
    """Single steps of either in float32, without dropout, against the same steps in float64."""

    def __init__(self, data: Digits, settings: Settings) -> None:
        settings = replace(settings, dropout=0.0)
        rows = slice(0, settings.batch_size)
        self.images = data.train_images[rows].contiguous(memory_format=settings.memory_format)
        self.labels = data.train_labels[rows]
        self.exact = build_network(STOCK, settings).double()
        self.stock = build_network(STOCK, settings)
        self.fused = build_network(FUSED, settings)
        self.stock_errors: list[float] = []
        self.fused_errors: list[float] = []

    def compare(self, trained: nn.Module) -> None:
        """Records the errors of a step from the weights and buffers of this network.

        An error is the largest of those of the logits in evaluation, the gradients, and the buffers after the
        step, each the norm of the difference over the norm of the exact values.
        """
        exact, stock, fused = (self._step(each, trained) for each in (self.exact, self.stock, self.fused))
        self.stock_errors.append(_error(stock, exact))
        self.fused_errors.append(_error(fused, exact))

    def _step(self, network: nn.Module, trained: nn.Module) -> list[Tensor]:
        network.load_state_dict(trained.state_dict())
        images = self.images.to(next(network.parameters()).dtype)
        with torch.no_grad():
            logits = network.eval()(images)
        loss = F.cross_entropy(network.train()(images), self.labels)
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        return [logits.double(), _flat(gradients), _flat(network.buffers())]

    def check(self) -> Check:
        stock = worst(self.stock_errors)
        what = f"float32, {len(self.fused_errors)} single steps, largest relative error (stock's: {stock:.1e})"
        return Check(what, worst(self.fused_errors), STEP_BOUND + 2 * stock)


def _error(values: list[Tensor], exact: list[Tensor]) -> float:
    return worst([((a - b).norm() / b.norm()).item() for a, b in zip(values, exact, strict=True)])


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten().double() for tensor in tensors])


def check_curves(stock: Learner, fused: Learner, nudged: Learner, steps: int) -> Check:
    """Compares the mean losses of the epochs; says how far the nudged stock run is from the first."""
    curve, fused_curve, nudged_curve = (epoch_means(each.losses, steps) for each in (stock, fused, nudged))
    drift = relative_difference(curve, nudged_curve)
    what = f"float32, mean losses of the epochs, largest relative difference (stock from stock: {drift:.1e})"
    return Check(what, relative_difference(curve, fused_curve), CURVE_BOUND)


def epoch_means(losses: list[float], steps: int) -> list[float]:
    """The mean loss of each whole epoch so far."""
    return [sum(losses[i : i + steps]) / steps for i in range(0, len(losses) - steps + 1, steps)]


def largest_difference(left: list[float], right: list[float]) -> float:
    """The largest absolute difference; NaN where either holds a NaN."""
    return worst([abs(a - b) for a, b in zip(left, right, strict=True)])


def relative_difference(left: list[float], right: list[float]) -> float:
    """The largest difference of two positive numbers in terms of the smaller one."""
    return worst([abs(a - b) / min(a, b) for a, b in zip(left, right, strict=True)])


def worst(values: list[float]) -> float:
    """The largest value; NaN where one is NaN."""
    return math.nan if any(math.isnan(value) for value in values) else max(values)
