"""Measures how closely training with fused layers follows training with stock layers, and sets the limits.

If a ReLU's input is nearly zero, rounding decides whether its gradient passes. So two float32 trainings that differ
only by rounding drift apart: here by 1e-3 of the loss within five steps, and by a third after some epochs. Three checks
tell errors from rounding:

- `check_double`: in float64 nothing drifts in the first steps, so the losses must be equal.
- `StepComparison`: a single float32 step from given weights has no time to drift.
- `drift.check_curves`: a whole float32 training may drift from stock about as far as stock drifts from itself.
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


@dataclass(frozen=True)
class Check:
    """A measured value and the largest value that passes; NaN does not pass."""

    what: str
    measured: float
    bound: float

    @property
    def passed(self) -> bool:
        return self.measured <= self.bound

    def __str__(self) -> str:
        verdict = "agree" if self.passed else "DIVERGE"
        return f"{self.what}: {self.measured:.2g} (at most {self.bound:.2g}): {verdict}"


def check_double(data: Digits, settings: Settings, steps: int, after_step: Callable[[], object]) -> Check:
    """Compares the losses of the first steps in float64, without dropout."""
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
    what = f"float64: largest difference between the losses in {steps} steps"
    return Check(what, largest_difference(stock.losses, fused.losses), DOUBLE_LOSS_BOUND)


class StepComparison:
    """Compares single float32 steps of stock and fused layers with the same steps in float64, without dropout."""

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
        """Records the errors of one step that starts from the weights and buffers of `trained`.

        Compares the logits in evaluation, the gradients, and the step's changes to the running statistics and batch
        counts. Each error is the norm of the difference divided by the norm of the exact values; the largest is
        recorded.
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
        changes = [
            (after.double() - before) for after, before in zip(network.buffers(), trained.buffers(), strict=True)
        ]
        statistics = [change for change in changes if change.dim()]
        counts = [change for change in changes if not change.dim()]
        return [_flat([logits]), _flat(gradients), _flat(statistics), _flat(counts)]

    def check(self) -> Check:
        stock = worst(self.stock_errors)
        what = f"float32: largest relative error of {len(self.fused_errors)} single steps (stock's: {stock:.1e})"
        return Check(what, worst(self.fused_errors), STEP_BOUND + 2 * stock)


def _error(values: list[Tensor], exact: list[Tensor]) -> float:
    return worst([((a - b).norm() / b.norm()).item() for a, b in zip(values, exact, strict=True)])


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten().double() for tensor in tensors])


def epoch_means(losses: list[float], steps: int) -> list[float]:
    """The mean loss of each complete epoch."""
    return [sum(losses[i : i + steps]) / steps for i in range(0, len(losses) - steps + 1, steps)]


def largest_difference(left: list[float], right: list[float]) -> float:
    """The largest absolute difference; NaN if there is any NaN."""
    return worst([abs(a - b) for a, b in zip(left, right, strict=True)])


def worst(values: list[float]) -> float:
    """The largest value; NaN if any is NaN."""
    return math.nan if any(math.isnan(value) for value in values) else max(values)
