"""What a forward does to global state, or asks about it, is done and asked at each call of the fused model."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import fusedtricks

BF16 = {"device_type": "cpu", "dtype": torch.bfloat16}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.bn, self.drop = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)

    def body(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.fc(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class OnForward(Net):
    @torch.autocast(**BF16)
    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class SwitchedOff(Net):
    @torch.autocast("cpu", enabled=False)
    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class OnMethod(Net):
    @torch.autocast("cpu", enabled=False)
    def exact(self, x: Tensor) -> Tensor:
        return self.fc(x.float())

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.exact(x)))


@torch.autocast(**BF16)
def in_bfloat16(fc: nn.Module, x: Tensor) -> Tensor:
    return fc(x)


class OnHelper(Net):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(in_bfloat16(self.fc, x)))


class Outer(Net):
    def __init__(self) -> None:
        super().__init__()
        self.inner = OnForward()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.inner(x) + x)


class ByHand(Net):
    def forward(self, x: Tensor) -> Tensor:
        context = torch.autocast(**BF16)
        context.__enter__()
        y = self.body(x)
        context.__exit__(None, None, None)
        return y


class HalfWay(Net):
    """Autocast begins between a chain's members."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.fc(x))
        context = torch.autocast(**BF16)
        context.__enter__()
        y = self.fc(F.relu(y))
        context.__exit__(None, None, None)
        return y


class HalfWayInATail(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        context = torch.autocast(**BF16)
        context.__enter__()
        y = self.drop(F.relu(y))
        context.__exit__(None, None, None)
        return y


class Stack(Net):
    def forward(self, x: Tensor) -> Tensor:
        stack = contextlib.ExitStack()
        stack.enter_context(torch.autocast(**BF16))
        y = self.body(x)
        stack.close()
        return y


class With(Net):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(**BF16):
            return self.body(x)


class BySetting(Net):
    def forward(self, x: Tensor) -> Tensor:
        torch.set_autocast_enabled("cpu", True)
        y = self.body(x)
        torch.set_autocast_enabled("cpu", False)
        return y


class Inside(Net):
    def forward(self, x: Tensor) -> Tensor:
        return torch.autocast(**BF16)(self.body)(x)


WAYS = [
    OnForward,
    SwitchedOff,
    OnMethod,
    OnHelper,
    Outer,
    ByHand,
    HalfWay,
    HalfWayInATail,
    Stack,
    With,
    BySetting,
    Inside,
]


@pytest.mark.parametrize("model", WAYS, ids=lambda m: m.__name__)
@pytest.mark.parametrize("outside", [False, True])
def test_autocast_that_a_forward_enters(model, outside):
    stock = model()
    stock.drop.p = 0.0
    fused = fusedtricks.fuse(stock, example_inputs=torch.randn(4, 8))
    x = torch.randn(4, 8)
    with torch.autocast(**BF16, enabled=outside):
        actual, expected = fused(x), stock(x)
    assert actual.dtype is expected.dtype
    torch.testing.assert_close(actual, expected)


class Frozen(Net):
    def forward(self, x: Tensor) -> Tensor:
        torch.set_grad_enabled(False)
        y = self.body(x)
        torch.set_grad_enabled(True)
        return self.fc(y)


class FrozenHalf(Net):
    """Gradients are switched off between a chain's members."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.fc(x))
        torch.set_grad_enabled(False)
        y = F.relu(y)
        torch.set_grad_enabled(True)
        return y


class FrozenFirst(Net):
    """Gradients are switched on between a chain's members."""

    def forward(self, x: Tensor) -> Tensor:
        torch.set_grad_enabled(False)
        y = self.bn(self.fc(x))
        torch.set_grad_enabled(True)
        return F.relu(y)


class Inference(Net):
    def forward(self, x: Tensor) -> Tensor:
        mode = torch.inference_mode()
        mode.__enter__()
        y = self.body(x)
        mode.__exit__(None, None, None)
        return y


class NoGradient(Net):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


@pytest.mark.parametrize("model", [Frozen, FrozenHalf, FrozenFirst, Inference, NoGradient])
def test_gradients_that_a_forward_switches(model):
    stock = model()
    fused = fusedtricks.fuse(stock)
    x = torch.randn(5, 8)
    results = [m(x) for m in (stock, fused)]
    assert results[0].requires_grad == results[1].requires_grad
    if results[0].requires_grad:
        for result in results:
            result.sum().backward()
    assert [p.grad is None for p in fused.parameters()] == [p.grad is None for p in stock.parameters()]


class Attention(Net):
    @sdpa_kernel([SDPBackend.MATH])
    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)[None, None]
        return F.scaled_dot_product_attention(y, y, y) + float(torch.backends.cuda.flash_sdp_enabled())


class Flags(Net):
    @torch.backends.mkldnn.flags(enabled=False)
    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + float(torch.backends.mkldnn.enabled)


class Forked(Net):
    @torch.random.fork_rng()
    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.dropout(self.body(x), 0.0) + torch.rand_like(x)


class Seeds(Net):
    def forward(self, x: Tensor) -> Tensor:
        torch.manual_seed(5)
        return self.body(x) + torch.randn_like(x)


@pytest.mark.parametrize("model", [Attention, Flags, Forked, Seeds])
def test_settings_that_a_forward_changes(model):
    import torch._dynamo  # once decided how a forward that seeds is traced

    stock = model().eval()
    fused = fusedtricks.fuse(stock)
    x, states = torch.randn(5, 8), []
    for m in (stock, fused):
        torch.manual_seed(1)
        states.append((m(x), torch.get_rng_state()))
    torch.testing.assert_close(states[0], states[1])


CALLS: list[int] = []
COUNTS: Counter[str] = Counter()
EFFECTS: dict[str, tuple[Callable[[], Any], Callable[[], Any], Callable[[], Any]]] = {
    "list": (lambda: CALLS.append(1), lambda: len(CALLS), CALLS.clear),
    "counter": (lambda: COUNTS.update(["call"]), lambda: sum(COUNTS.values()), COUNTS.clear),
    "threads": (lambda: torch.set_num_threads(1), torch.get_num_threads, lambda: torch.set_num_threads(2)),
    "deterministic": (
        lambda: torch.use_deterministic_algorithms(True, warn_only=True),
        torch.are_deterministic_algorithms_enabled,
        lambda: torch.use_deterministic_algorithms(False),
    ),
    "autocast": (
        lambda: torch.set_autocast_enabled("cpu", True),
        lambda: torch.is_autocast_enabled("cpu"),
        lambda: torch.set_autocast_enabled("cpu", False),
    ),
    "anomaly": (
        lambda: torch.autograd.set_detect_anomaly(True),
        torch.is_anomaly_enabled,
        lambda: torch.autograd.set_detect_anomaly(False),
    ),
    "seed": (
        lambda: torch.default_generator.manual_seed(5),
        lambda: torch.default_generator.initial_seed(),
        lambda: torch.default_generator.manual_seed(1),
    ),
}


@pytest.mark.parametrize("name", EFFECTS)
def test_effects_on_global_state(name, restore_threads):
    """Not by fuse, but at each call."""
    act, ask, reset = EFFECTS[name]

    class Acts(Net):
        def forward(self, x: Tensor) -> Tensor:
            act()
            return self.body(x)

    stock = Acts()
    try:
        reset()
        before = ask()
        fused = fusedtricks.fuse(stock)
        assert ask() == before
        answers = []
        for model in (stock, fused):
            reset()
            model(torch.randn(4, 8))
            answers.append(ask())
        assert answers[0] == answers[1] != before
    finally:
        reset()


QUESTIONS: dict[str, tuple[Callable[[], bool], Callable[[], None], Callable[[], None]]] = {
    "autocast dtype": (
        lambda: torch.get_autocast_dtype("cpu") == torch.float16,
        lambda: torch.set_autocast_dtype("cpu", torch.float16),
        lambda: torch.set_autocast_dtype("cpu", torch.bfloat16),
    ),
    "anomaly": (
        torch.is_anomaly_enabled,
        lambda: torch.autograd.set_detect_anomaly(True),
        lambda: torch.autograd.set_detect_anomaly(False),
    ),
    "dtype": (
        lambda: torch.get_default_dtype() == torch.float64,
        lambda: torch.set_default_dtype(torch.float64),
        lambda: torch.set_default_dtype(torch.float32),
    ),
    "gradients": (
        torch.is_grad_enabled,
        lambda: torch.set_grad_enabled(False),
        lambda: torch.set_grad_enabled(True),
    ),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_questions_about_global_state(name):
    """Asked at each call."""
    ask, on, off = QUESTIONS[name]

    class Asks(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = self.body(x)
            return y * 2 if ask() else y

    stock = Asks().eval()
    fused = fusedtricks.fuse(stock)
    x = torch.randn(5, 8)
    torch.testing.assert_close(fused(x), stock(x))
    on()
    try:
        torch.testing.assert_close(fused(x), stock(x))
    finally:
        off()
