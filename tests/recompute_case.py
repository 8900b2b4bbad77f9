"""A small network around a fused layer, and how it is compared with and without `recompute()`."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fusedtricks
from fusedtricks import recompute

OUTPUTS = ("batch_norm_act_output", "act_dropout_output", "dropout_output", "feature_dropout_output")


class Net(nn.Module):
    """Convolutions around a fused layer, and what a test makes of them."""

    def __init__(self, act: str = "silu", p: float = 0.0) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (
            nn.Conv2d(3, 8, 3, padding=1),
            *(nn.Conv2d(8, 8, 3, padding=1) for _ in range(2)),
        )
        self.norm = fusedtricks.nn.BatchNormAct2d(8, act=act)

    def fused(self, x: Tensor) -> Tensor:
        return self.norm(self.conv1(x))


Forward = Callable[[Net, Tensor], Tensor]


def gradients(net: nn.Module, loss: Tensor, **options: Any) -> list[Tensor | None]:
    return list(torch.autograd.grad(loss, list(net.parameters()), allow_unused=True, **options))


def recomputed_by(run: Callable[[], Any]) -> tuple[Any, int]:
    """What a call gives, and how many outputs were computed again meanwhile."""
    with torch.profiler.profile() as profile:
        result = run()
    names = {f"fusedtricks::{name}" for name in OUTPUTS}
    return result, sum(event.count for event in profile.key_averages() if event.key in names)


def assert_same(a: list[Tensor | None], b: list[Tensor | None]) -> None:
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


def compare(forward: Forward, recomputed: int | None = None, context: Callable[[], Any] = recompute) -> None:
    """A forward and its backward within `recompute()` and without: gradients and buffers."""
    x, net = torch.randn(2, 3, 8, 8), Net()
    other = copy.deepcopy(net)
    expected = gradients(net, forward(net, x))
    with context():
        loss = forward(other, x)
    found, times = recomputed_by(lambda: gradients(other, loss))
    assert_same(found, expected)
    assert_same(list(other.buffers()), list(net.buffers()))
    assert recomputed is None or times == recomputed


def several(net: Net, x: Tensor) -> Tensor:
    y = net.fused(x)
    return (net.conv2(y) * net.conv3(y) * F.max_pool2d(y, 3, 1, 1)).sum()


def live_bytes(run: Callable[[], Any]) -> int:
    """How much more memory is in use after a call than before, while its result is alive."""
    gc.collect()
    with torch.profiler.profile(profile_memory=True) as profile:
        result = run()
    events = [event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    del result
    return sum(events)


def hooks_now() -> Any:
    return torch._C._autograd._top_saved_tensors_default_hooks(False)


def alone(net: Net, x: Tensor) -> list[Tensor | None]:
    net = copy.deepcopy(net)
    return gradients(net, several(net, x))


def small() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 2)
    )
