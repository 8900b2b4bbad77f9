"""Several networks trained side by side, each batch given to all of them before the next."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..stock import Layers
from .data import Digits
from .network import ResidualNetwork

WARM_UP_STEPS = 3


@dataclass(frozen=True)
class Settings:
    """What one training run is made of."""

    epochs: int = 8
    batch_size: int = 64
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    act: str = "relu"
    dropout: float = 0.0
    channels_last: bool = False
    seed: int = 0

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format


def build_network(layers: Layers, settings: Settings, initial: nn.Module | None = None) -> ResidualNetwork:
    """A network of these layers, with the parameters and buffers of ``initial`` where one is given."""
    torch.manual_seed(settings.seed)
    network = ResidualNetwork(layers, settings.act, settings.dropout)
    if initial is not None:
        network.load_state_dict(initial.state_dict())
    return network.to(memory_format=settings.memory_format)  # type: ignore[call-overload]


def nudge(network: nn.Module, seed: int = 0) -> None:
    """Moves every parameter by -1, 0 or 1 units in its last place, at random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            step = torch.randint(-1, 2, parameter.shape, generator=generator).to(parameter)
            parameter.mul_(1 + torch.finfo(parameter.dtype).eps * step)


@dataclass
class Learner:
    """A network with its optimiser and schedule, and what its training steps returned."""

    name: str
    network: nn.Module
    settings: Settings
    total_steps: int
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.SGD(
            self.network.parameters(),
            lr=self.settings.learning_rate,
            momentum=self.settings.momentum,
            weight_decay=self.settings.weight_decay,
            nesterov=True,
        )
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, self.settings.learning_rate, total_steps=self.total_steps
        )

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Forward, loss, backward and update on one batch; records the loss and the seconds."""
        start = time.perf_counter()
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.network(images), labels)
        loss.backward()
        self.optimizer.step()
        self.seconds.append(time.perf_counter() - start)
        self.scheduler.step()
        self.losses.append(loss.item())

    @torch.no_grad()
    def test(self, images: Tensor, labels: Tensor) -> None:
        """Records the accuracy in evaluation mode."""
        self.network.eval()
        correct = self.network(images).argmax(dim=1) == labels
        self.accuracies.append(correct.double().mean().item())
        self.network.train()


def steps_per_epoch(data: Digits, settings: Settings) -> int:
    """Whole batches in an epoch; the rest of a shuffled epoch is left out."""
    return len(data.train_labels) // settings.batch_size


def train_side_by_side(
    learners: Sequence[Learner],
    data: Digits,
    settings: Settings,
    after_step: Callable[[], object] = lambda: None,
    after_epoch: Callable[[int], object] = lambda epoch: None,
) -> None:
    """Trains all learners on the same batches in the same order.

    Which of them takes a step first is drawn anew for each batch, so that none always finds the caches as the
    same other left them.
    """
    batches = torch.Generator().manual_seed(settings.seed)
    turns = random.Random(settings.seed)
    steps = steps_per_epoch(data, settings)
    for epoch in range(settings.epochs):
        order = torch.randperm(len(data.train_labels), generator=batches)[: steps * settings.batch_size]
        for batch in order.split(settings.batch_size):
            images = data.train_images[batch].contiguous(memory_format=settings.memory_format)
            for learner in turns.sample(learners, len(learners)):
                learner.step(images, data.train_labels[batch])
            after_step()
        for learner in learners:
            learner.test(data.test_images, data.test_labels)
        after_epoch(epoch)
