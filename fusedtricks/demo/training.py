"""Trains several networks side by side: all of them get a batch before the next one."""

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
    """The settings of a training run."""

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
    """A network of these layers, with the parameters and buffers of `initial` if given."""
    torch.manual_seed(settings.seed)
    network = ResidualNetwork(layers, settings.act, settings.dropout)
    if initial is not None:
        network.load_state_dict(initial.state_dict())
    return network.to(memory_format=settings.memory_format)  # type: ignore[call-overload]


def nudge(network: nn.Module, seed: int) -> None:
    """Changes every parameter by up to four roundings, to represent the rounding of many layers in one step."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            roundings = torch.randint(-4, 5, parameter.shape, generator=generator).to(parameter)
            parameter.mul_(1 + torch.finfo(parameter.dtype).eps * roundings)


@dataclass
class Learner:
    """A network with its optimiser, learning-rate schedule and training record."""

    name: str
    network: nn.Module
    settings: Settings
    total_steps: int
    losses: list[float] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)
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
        """Trains on one batch; records the time in seconds, the loss and the norm of the gradient."""
        start = time.perf_counter()
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.network(images), labels)
        loss.backward()
        self.optimizer.step()
        self.seconds.append(time.perf_counter() - start)
        self.scheduler.step()
        self.losses.append(loss.item())
        gradients = [parameter.grad for parameter in self.network.parameters() if parameter.grad is not None]
        self.gradient_norms.append(nn.utils.get_total_norm(gradients).item())

    @torch.no_grad()
    def test(self, images: Tensor, labels: Tensor) -> None:
        """Records the accuracy in evaluation mode."""
        self.network.eval()
        correct = self.network(images).argmax(dim=1) == labels
        self.accuracies.append(correct.double().mean().item())
        self.network.train()


def steps_per_epoch(data: Digits, settings: Settings) -> int:
    """Complete batches per epoch; leftover images are not used in that epoch."""
    return len(data.train_labels) // settings.batch_size


def train_side_by_side(
    learners: Sequence[Learner],
    data: Digits,
    settings: Settings,
    after_step: Callable[[], object] = lambda: None,
    after_epoch: Callable[[int], object] = lambda epoch: None,
) -> None:
    """Trains all learners on the same batches in the same order.

    The learners' order is shuffled for each batch, so that none always finds the caches as one other left them.
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
