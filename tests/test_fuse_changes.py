"""What changes after fuse: replaced methods, changed containers and settings are noticed, pieces can be fused again."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fuse_case import chains, image
from fuse_models import BasicBlock, ResNet
from torch import Tensor, nn
from torch.nn.utils import parametrize

import fusedtricks


class End(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


def helper(x: Tensor) -> Tensor:
    return x + 1


class Net(nn.Module):
    """A chain that begins in an inlined module, in a method, with a function and an activation module."""

    def __init__(self) -> None:
        super().__init__()
        self.end, self.act, self.pool = End(), nn.ReLU(), nn.MaxPool2d(2)

    def inside(self, x: Tensor) -> Tensor:
        return self.pool(self.act(self.end(x)))

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(helper(self.inside(x)), 0.2)


PATCHES: list[tuple[Any, str, Any]] = [
    (Net, "forward", lambda self, x: self.end(x) * 3),
    (Net, "inside", lambda self, x: self.end(x) * 3),
    (End, "forward", lambda self, x: self.bn(self.conv(x)) * 2 - 1),
    (nn.ReLU, "forward", lambda self, x: torch.tanh(x)),
    (nn.Conv2d, "forward", lambda self, x: x * 2),
    (nn.BatchNorm2d, "forward", lambda self, x: x * 2),
    (nn.MaxPool2d, "forward", lambda self, x: x * 2),
    (F, "leaky_relu", lambda x, slope: x * slope),
    (__import__(__name__), "helper", lambda x: x - 1),
]


@pytest.mark.parametrize(("owner", "name", "new"), PATCHES, ids=lambda v: getattr(v, "__name__", str(v)))
@pytest.mark.parametrize("copied", [False, True])
def test_patched_functions_run(owner, name, new, copied, monkeypatch):
    stock = Net().double().eval()
    fused = fusedtricks.fuse(stock)
    assert chains(fused) == 1
    x = image()
    torch.testing.assert_close(fused(x), stock(x))
    monkeypatch.setattr(owner, name, new)
    if copied:
        fused = pickle.loads(pickle.dumps(fused))
    torch.testing.assert_close(fused(x), stock(x))
    monkeypatch.undo()
    torch.testing.assert_close(fused(x), stock(x))


@pytest.mark.parametrize("name", ["inside", "forward"])
def test_patched_methods_of_an_instance_run(name):
    stock = Net().double().eval()
    fused = fusedtricks.fuse(stock)
    for model in (stock, fused):
        setattr(model, name, MethodType(lambda self, x: self.end(x) * 3, model))
    x = image()
    torch.testing.assert_close(fused(x), stock(x))


class Iterates(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU()), *(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.SiLU())
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Children(Iterates):
    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers.children():
            x = layer(x)
        return x


class Indexed(Iterates):
    def forward(self, x: Tensor) -> Tensor:
        for i in range(len(self.layers)):
            x = self.layers[i](x)
        return x


class Members(Iterates):
    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers._modules.values():
            x = layer(x)
        return x


class Called(Iterates):
    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def reorder(layers: nn.Sequential) -> None:
    items = list(layers._modules.items())
    layers._modules.clear()
    layers._modules.update([*items[3:], *items[:3]])


def swap_places(layers: nn.Sequential) -> None:
    layers[2], layers[5] = layers[5], layers[2]


CONTAINER_CHANGES: dict[str, Callable[[Any], Any]] = {
    "append": lambda m: m.layers.append(nn.Tanh()),
    "insert": lambda m: m.layers.insert(2, nn.Tanh()),
    "delete": lambda m: m.layers.__delitem__(5),
    "replace": lambda m: setattr(m, "layers", nn.Sequential(nn.Tanh())),
    "replace one": lambda m: m.layers.__setitem__(2, nn.Tanh()),
    "reorder": lambda m: reorder(m.layers),
    "swap places": lambda m: swap_places(m.layers),
}


@pytest.mark.parametrize("model", [Iterates, Children, Indexed, Members, Called])
@pytest.mark.parametrize("change", CONTAINER_CHANGES)
def test_containers_that_change(model, change):
    stock = model().double().eval()
    fused = fusedtricks.fuse(stock)
    assert chains(fused) >= 2
    for m in (stock, fused):
        CONTAINER_CHANGES[change](m)
        m.eval()
    x = image()
    torch.testing.assert_close(fused(x), stock(x))


class Settings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(4)
        self.weights = nn.ParameterList([nn.Parameter(torch.full((1,), 2.0))])
        self.by_name = nn.ParameterDict({"a": nn.Parameter(torch.ones(1))})
        self.pair, self.deep, self.scale = (1, [2.0]), {"a": [1.0]}, 1
        self.blocks = []
        for i in range(2):
            block = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
            self.add_module(f"block{i}", block)
            self.blocks.append(block)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        y = F.relu(self.bn(x))
        for weight in self.weights:
            y = y * weight
        for key in self.by_name:
            y = y * self.by_name[key]
        return y * self.pair[1][0] * sum(self.deep["a"]) * self.scale


SETTING_CHANGES: dict[str, Callable[[Any], Any]] = {
    "ParameterList": lambda m: m.weights.append(nn.Parameter(torch.full((1,), 3.0, dtype=torch.float64))),
    "ParameterDict": lambda m: m.by_name.update({"b": nn.Parameter(torch.full((1,), 3.0, dtype=torch.float64))}),
    "list in a tuple": lambda m: m.pair[1].__setitem__(0, 9.0),
    "list in a dictionary": lambda m: m.deep["a"].append(5.0),
    "equal value of another type": lambda m: setattr(m, "scale", True),
    "member of a plain list": lambda m: setattr(m, "block0", nn.Identity()),
}


@pytest.mark.parametrize("change", SETTING_CHANGES)
def test_settings_that_change(change):
    stock = Settings().double().eval()
    fused = fusedtricks.fuse(stock)
    assert chains(fused) >= 3, fusedtricks.report(fused)
    x = image()
    torch.testing.assert_close(fused(x), stock(x))
    for m in (stock, fused):
        SETTING_CHANGES[change](m)
    torch.testing.assert_close(fused(x), stock(x))


def layers() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU()), *(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.SiLU())
    ).double()


def test_pieces_are_fused_again():
    fused = fusedtricks.fuse(layers())
    assert chains(fusedtricks.fuse(fused[:3])) == 1
    again = fusedtricks.fuse(type(fused)(*layers()))
    assert chains(again) == 2
    x = image()
    torch.testing.assert_close(fused[:3](x), fusedtricks.unfuse(fused)[:3](x))
    assert type(fusedtricks.unfuse(again)) is nn.Sequential


def test_unfused_under_a_parametrization():
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bn = nn.Parameter(torch.ones(4, 1, 1)), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.bn(x * self.weight))

    fused = fusedtricks.fuse(Weighted())
    parametrize.register_parametrization(fused, "weight", nn.Identity())
    stock = fusedtricks.unfuse(fused)
    assert isinstance(fused, Weighted) and parametrize.is_parametrized(stock)
    parametrize.remove_parametrizations(stock, "weight")
    assert type(stock) is Weighted
    assert chains(fusedtricks.fuse(stock)) == 1


def test_what_torch_has_traced_or_compiled_is_reported():
    for model, by in ((torch.fx.symbolic_trace(layers()), "torch.fx"), (torch.jit.script(layers()), "torch.jit")):
        report = fusedtricks.report(fusedtricks.fuse(model, inplace=True))
        assert f"{by} has" in str(report)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_protocols(protocol):
    fused = fusedtricks.fuse(ResNet().double()).eval()
    again = pickle.loads(pickle.dumps(fused, protocol=protocol))
    x = image()
    torch.testing.assert_close(again(x), fused(x))
    assert chains(again) == 5 and type(fusedtricks.unfuse(again)) is ResNet


def test_a_pickle_follows_the_code_that_it_meets(monkeypatch):
    """The plan is made again from the source that is there."""
    data = pickle.dumps(fusedtricks.fuse(Net().double().eval()))
    monkeypatch.setattr(Net, "forward", Iterates.forward)
    monkeypatch.setattr(Net, "layers", property(lambda self: [self.end, self.act]), raising=False)
    again = pickle.loads(data)
    x = image()
    torch.testing.assert_close(again(x), F.relu(again.end(x)))


def test_no_class_is_kept():
    """A user's class can go when its modules have gone."""
    import gc
    import weakref

    class Local(BasicBlock):
        pass

    fusedtricks.fuse(Local())
    reference = weakref.ref(Local)
    del Local
    gc.collect()
    assert reference() is None


def test_lazy_modules():
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU())
    x = torch.randn(2, 3, 8, 8)
    with pytest.raises(ValueError, match="argument 'model' has lazy modules"):
        fusedtricks.fuse(model, inplace=True, example_inputs=x)
    fused = fusedtricks.fuse(model, inplace=True)
    fused(x).sum().backward()
    assert isinstance(fused[1], nn.BatchNorm2d)
    torch.testing.assert_close(fused(x), fusedtricks.unfuse(fused)(x))
