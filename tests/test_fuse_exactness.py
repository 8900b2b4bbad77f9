"""What a graph would silently freeze, lose or reorder: fuse leaves it stock, or notices when it matters."""

from __future__ import annotations

import collections
import copy
import itertools
import pickle
import random
import threading
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from fuse_case import assert_same_training, chains, image
from fuse_models import Base, BasicBlock, ResNet
from torch import Tensor, nn

import fusedtricks
from fusedtricks.fusing import dynamo

CACHE: dict[str, Any] = {}


class Chain(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.beside(self.relu(self.bn1(self.conv1(x))), x)


class MovingAverage(Chain):
    """Writes to its parameters in a no_grad method, like MoCo and BYOL."""

    @torch.no_grad()
    def update(self) -> None:
        for a, b in zip(self.conv1.parameters(), self.conv2.parameters(), strict=True):
            b.data = b.data * 0.9 + a.data * 0.1

    def beside(self, y: Tensor, x: Tensor) -> Tensor:
        self.update()
        return y


class ValueOfParameter(Chain):
    def beside(self, y: Tensor, x: Tensor) -> Tensor:
        return y * sum(p.sum().item() for p in self.parameters())


class Remembers(Chain):
    def __init__(self) -> None:
        super().__init__()
        self.last: collections.deque[Tensor] = collections.deque(maxlen=2)

    def beside(self, y: Tensor, x: Tensor) -> Tensor:
        self.last.append(y)
        return y


class RemembersElsewhere(Chain):
    def beside(self, y: Tensor, x: Tensor) -> Tensor:
        CACHE.setdefault("y", y)
        return y


class FullPrecision(Chain):
    def beside(self, y: Tensor, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return self.conv2(y.float())


class AsksForGradients(Chain):
    def beside(self, y: Tensor, x: Tensor) -> Tensor:
        return y if torch.is_grad_enabled() else y + 1


class Reverses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient


class Reversed(Chain):
    def beside(self, y: Tensor, x: Tensor) -> Tensor:
        return Reverses.apply(y)


class Counts(Chain):
    def __init__(self) -> None:
        super().__init__()
        self.counter, self.generator = itertools.count(), random.Random(0)

    def beside(self, y: Tensor, x: Tensor) -> Tensor:
        return y + next(self.counter)


class Draws(Counts):
    def beside(self, y: Tensor, x: Tensor) -> Tensor:
        return y + self.generator.random()


class Catches(Chain):
    def beside(self, y: Tensor, x: Tensor) -> Tensor:
        try:
            return y if x.shape[0] > 1 else y + 1
        except RuntimeError:
            return y - 1


class Text(Chain):
    def beside(self, y: Tensor, x: Tensor) -> Tensor:
        return y + 1 if f"{x.device}" == "cpu" else y


class Temporarily(Chain):
    def beside(self, y: Tensor, x: Tensor) -> Tensor:
        self.bn2.eval()
        y = self.bn2(y)
        self.bn2.train()
        return y


class Hooks(Chain):
    def beside(self, y: Tensor, x: Tensor) -> Tensor:
        handle = self.conv2.register_forward_hook(lambda m, i, o: o * 2)
        y = self.conv2(y)
        handle.remove()
        return y


class Doubled(nn.Sequential):
    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x) * 2


class CallsOfItsOwn(Chain):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Doubled(nn.BatchNorm2d(4))

    def beside(self, y: Tensor, x: Tensor) -> Tensor:
        return self.relu(self.inner(y))


LEFT = [
    *(MovingAverage, ValueOfParameter, Remembers, RemembersElsewhere, FullPrecision, AsksForGradients, Reversed),
    *(Counts, Draws, Catches, Text, Temporarily, Hooks, CallsOfItsOwn),
]


@pytest.mark.parametrize("model", LEFT, ids=lambda m: m.__name__)
def test_forwards_that_are_left(model):
    """Finding that out changes neither the model nor anything it can reach."""
    CACHE.clear()
    stock = model().double()
    before = copy.deepcopy(stock.state_dict())
    fused = fusedtricks.fuse(stock, inplace=True)
    assert not chains(fused) and type(fused) is model
    torch.testing.assert_close(dict(stock.state_dict()), dict(before), rtol=0, atol=0)
    assert not [x for x in (*CACHE.values(), *getattr(fused, "last", ())) if not isinstance(x, Tensor)]


class Reads(Chain):
    """Makes decisions based on its own attributes, its members' attributes, and the number of members."""

    def __init__(self) -> None:
        super().__init__()
        self.padding, self.options = (1, 1), {"scale": 2.0}
        self.layers = nn.ModuleList([nn.Conv2d(4, 4, 1)])

    def beside(self, y: Tensor, x: Tensor) -> Tensor:
        y = F.batch_norm(y, self.bn2.running_mean, self.bn2.running_var, training=self.bn2.training, eps=self.bn2.eps)
        for layer in self.layers:
            y = layer(y)
        if hasattr(self, "extra"):
            y = y + self.extra
        return F.pad(y, self.padding) * self.options["scale"]


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.bn2.eval(),
        lambda m: setattr(m.bn2, "eps", 0.5),
        lambda m: setattr(m, "padding", (2, 0)),
        lambda m: m.options.update(scale=3.0),
        lambda m: m.layers.append(nn.Conv2d(4, 4, 1).double()),
        lambda m: m.layers.pop(0),
        lambda m: setattr(m, "extra", 1.0),
        lambda m: setattr(m.bn1, "forward", lambda x: x * 2),
        lambda m: setattr(m.relu, "forward", lambda x: x * 2),
    ],
)
def test_what_a_forward_read_is_a_guard(change):
    stock = Reads().double()
    fused = fusedtricks.fuse(stock)
    assert chains(fused) == 1
    assert_same_training(fused, stock)
    for model in (stock, fused):
        torch.manual_seed(1)
        change(model)
    assert_same_training(fused, stock)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("compiled", [False, True])
def test_additions_keep_type_and_strides(compiled, dtype):
    """In place, the BatchNorm's dtype whatever is added; otherwise the first operand's strides."""

    class First(Base):
        def forward(self, x: Tensor, r: Tensor) -> Tensor:
            return F.relu(r + self.bn1(x))

    x, r = torch.randn(2, 3, 4, 5, 5)
    for make in (BasicBlock, First):
        stock = make()
        fused = torch.compile(copy.deepcopy(stock), backend=dynamo.backend) if compiled else fusedtricks.fuse(stock)
        arguments = (x.to(memory_format=torch.channels_last), r.to(dtype)) if make is First else (x,)
        with torch.autocast("cpu", torch.bfloat16, enabled=make is BasicBlock):
            actual, expected = fused(*arguments), stock(*arguments)
        assert (actual.dtype, actual.stride()) == (expected.dtype, expected.stride())
        torch.testing.assert_close(actual, expected, rtol=0.02, atol=0.02)
    torch._dynamo.reset()


class StateBetween(Base):
    def forward(self, x: Tensor) -> Tensor:
        mean = self.bn1.running_mean
        y = self.bn1(self.conv1(x))
        s = mean.sum()
        return F.relu(y) * s


class WeightBetween(Base):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.bn1.weight
        y = self.bn1(self.conv1(x))
        weight.data.mul_(0.5)
        return F.relu(y)


class FunctionalThenModule(Base):
    def forward(self, x: Tensor) -> Tensor:
        bn = self.bn1
        y = F.batch_norm(self.conv1(x), bn.running_mean, bn.running_var, training=True)
        z = self.bn1(self.conv2(x)).sigmoid()
        return F.relu(y) * z


class FrozenStem(Base):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.bn1(self.conv1(x))
        return F.relu(y + x)


@pytest.mark.parametrize("model", [StateBetween, WeightBetween, FunctionalThenModule, FrozenStem])
@pytest.mark.parametrize("compiled", [False, True])
def test_what_happens_between(model, compiled):
    stock = model().double()
    twin = copy.deepcopy(stock)
    assert_same_training(torch.compile(twin, backend=dynamo.backend) if compiled else fusedtricks.fuse(twin), stock)
    torch._dynamo.reset()


@pytest.mark.parametrize("act", [nn.LeakyReLU(), nn.ELU(), nn.SELU(), nn.ReLU6(), nn.Softplus(), nn.GELU(), nn.SiLU()])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_results_that_are_changed_in_place(act, residual, compiled):
    """Stock keeps an input for backward where ours would keep the result or the residual."""

    class Changed(Base):
        def forward(self, x: Tensor) -> Tensor:
            r = self.conv2(x)
            y = self.bn1(self.conv1(x))
            y = self.relu(y + r) if residual else self.relu(self.relu(y) * 2)
            y += 1
            r *= 2
            return y

    stock = Changed(act).double()
    twin = copy.deepcopy(stock)
    assert_same_training(torch.compile(twin, backend=dynamo.backend) if compiled else fusedtricks.fuse(twin), stock)
    torch._dynamo.reset()


def test_activations_whose_result_is_only_read_are_replaced():
    fused = fusedtricks.fuse(nn.Sequential(nn.Linear(4, 4), nn.LeakyReLU(), nn.Linear(4, 4), nn.LeakyReLU()))
    report = fusedtricks.report(fused)
    assert [entry.where for entry in report.singles] == ["1"]
    assert [(entry.where, entry.reason) for entry in report.left] == [("3", "its result may be changed in place")]


def test_an_activation_that_an_untraceable_forward_calls_too():
    """The untraceable forward may change the activation's result, which no trace shows."""

    class Untraceable(nn.Module):
        def __init__(self, act: nn.Module) -> None:
            super().__init__()
            self.acts = nn.ModuleList([act])

        def forward(self, x: Tensor) -> Tensor:
            y = self.acts[0](x if x.sum() > 0 else x + 1)
            return y.add_(1)

    act = nn.LeakyReLU()
    stock = nn.Sequential(nn.Conv2d(4, 4, 1), act, nn.Conv2d(4, 4, 1), Untraceable(act)).double()
    assert_same_training(fusedtricks.fuse(stock), stock)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m.bn1, "num_batches_tracked", m.bn1.num_batches_tracked.double()),
        lambda m: setattr(m.bn1, "momentum", 1.5),
    ],
)
def test_states_that_only_stock_takes(change):
    stock = BasicBlock().double()
    change(stock)
    assert_same_training(fusedtricks.fuse(stock), stock)


def test_tensors_that_are_not_plain():
    stock = nn.Sequential(nn.Linear(4, 4), nn.GELU())
    fused = fusedtricks.fuse(stock)
    nested = torch.nested.nested_tensor([torch.randn(2, 4), torch.randn(3, 4)])
    for actual, expected in zip(fused(nested).unbind(), stock(nested).unbind(), strict=True):
        torch.testing.assert_close(actual, expected)


class Registers(BasicBlock):
    registry: ClassVar[list[type]] = []

    def __init_subclass__(cls) -> None:
        Registers.registry.append(cls)


def test_classes_that_notice_subclasses_are_left():
    fused = fusedtricks.fuse(nn.Sequential(Registers(), BasicBlock()).double(), inplace=True)
    assert chains(fused) == 2 and not Registers.registry
    assert "its class takes notice of classes derived from it" in str(fusedtricks.report(fused))


def test_names_that_are_words_of_python():
    class Words(Base):
        def __init__(self) -> None:
            super().__init__()
            self.acts = nn.ModuleDict({"lambda": nn.ReLU()})

        def forward(self, x: Tensor) -> Tensor:
            return self.acts["lambda"](self.bn1(x))

    stock = Words().double()
    assert_same_training(fusedtricks.fuse(stock), stock)


def test_unpickled_models_run_in_threads():
    """Nothing is traced then; tracing would change nn.Module while other threads use it."""
    fused = pickle.loads(pickle.dumps(fusedtricks.fuse(ResNet().double()).eval()))
    x, results = image(), []
    threads = [threading.Thread(target=lambda: results.append(fused(x))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and all(torch.equal(result, results[0]) for result in results)
    assert chains(fused) == 5
