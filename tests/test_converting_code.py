"""`to_stock` and `to_fused` of models whose code looks into containers, passes residuals or changes results."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from converting_case import given, ours_in, step
from fuse_models import ResNet
from torch import Tensor, nn

import fusedtricks
import fusedtricks.nn as ftnn
from fusedtricks import stock_keys, to_fused, to_stock


class Layers(nn.Module):
    """Runs its layers; what classes derived from it do with them besides decides whether they may be joined."""

    def __init__(self, deep: bool = False) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), *([nn.Flatten()] if deep else []))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Indexes(Layers):
    def scale(self) -> Any:
        return self.layers[0].weight


class Measures(Layers):
    @property
    def depth(self) -> int:
        return len(self.layers)


class Gets(Layers):
    def first(self) -> Any:
        return getattr(self, "layers")[0]  # noqa: B009


class TapsInside(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> list[Tensor]:
        results = []
        with torch.no_grad():
            for layer in self.net.layers.children():
                x = layer(x)
                results.append(x)
                if len(results) == 9:
                    break
        return results


class TriesFirst(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Any:
        try:
            return self.net(x)
        except ValueError:
            return list(next(self.children()).children())


@pytest.mark.parametrize("deep", [False, True])
def test_containers_that_code_looks_into_stay(deep):
    def joins(model: nn.Module) -> bool:
        return "BatchNormReLU2d" in ours_in(to_fused(model))

    assert joins(Layers(deep)) and joins(nn.Sequential(Layers(deep)))
    for model in (Indexes(deep), Measures(deep), Gets(deep), TapsInside(Layers(deep)), TriesFirst(Layers(deep))):
        assert not joins(model)
    space: dict[str, Any] = {"Layers": Layers}
    exec("class Hidden(Layers):\n def look(self): return self.layers[0]", space)
    assert not joins(space["Hidden"](deep))  # whose source cannot be read


def test_identities_that_code_looks_into_stay():
    class Sees(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(ftnn.BatchNormReLU2d(4), nn.Identity(), nn.Flatten())

        def forward(self, x: Tensor) -> list[Tensor]:
            return [self.layers[:1](x), self.layers(x)]

    x = torch.randn(2, 4, 3, 3)
    model = Sees().eval()
    torch.testing.assert_close(to_stock(model)(x), model(x))


class SometimesAdds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = ftnn.BatchNormReLU2d(4)
        self.keywords = ftnn.BatchNormReLU2d(4)
        self.toggled = ftnn.BatchNormReLU2d(4)
        self.elsewhere = ftnn.BatchNormReLU2d(4)
        self.hooked = ftnn.BatchNormReLU2d(4)
        self.hooked.register_forward_pre_hook(lambda module, args: (args[0], args[0]))
        self.adds = False

    def forward(self, x: Tensor, skip: Tensor | None = None, **more: Any) -> Any:
        x = self.hooked(self.keywords(x, **more))
        x = self.toggled(x, x) if self.adds else self.toggled(x)
        if skip is None:
            return self.norm(x)
        return self.norm(x, skip)

    def another(self, x: Tensor) -> Any:
        return self.elsewhere(x, x)


def test_residuals_that_may_be_passed():
    model, x = given(SometimesAdds()).eval(), torch.randn(2, 4, 3, 3)
    stock = to_stock(model)
    model.adds = stock.adds = True
    for arguments in ((x,), (x, x)):
        torch.testing.assert_close(stock(*arguments, residual=x), model(*arguments, residual=x))
    torch.testing.assert_close(stock.another(x), model.another(x))


def test_marks_of_libraries_are_ignored():
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    torch.jit.script(model)
    for module in model:
        module._is_hf_initialized = True
    fused = to_fused(model)
    assert type(fused[1]) is ftnn.BatchNormReLU2d
    torch.jit.script(fused)
    assert stock_keys(fused)["1.weight"] == "1.weight"


def test_the_first_place_keeps_its_object():
    model = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Dropout(0.1), nn.Flatten())
    objects = [*model]
    to_fused(model, inplace=True)
    assert ours_in(model) == ["BatchNormReLU2d", "LinearActDropout"]
    assert model[0] is objects[0] and model[2] is objects[2]
    to_stock(model, inplace=True)
    assert type(model[0]) is nn.BatchNorm2d and model[0] is objects[0] and model[2] is objects[2]
    norm = nn.BatchNorm2d(4)
    whole = to_fused(nn.Sequential(norm, nn.ReLU()), inplace=True)
    assert norm.weight is whole.weight and norm._buffers is whole._buffers  # for who holds the layer otherwise
    unfolded = nn.Sequential(
        ftnn.ActDropout("leaky_relu", 0.2, act_kwargs={"negative_slope": 0.3}), nn.Identity(), norm
    )
    first = unfolded[0]
    to_stock(unfolded, inplace=True)
    assert unfolded[0] is first and repr(first) == repr(nn.LeakyReLU(0.3)) and type(unfolded[1]) is nn.Dropout


def test_scripted_children_are_leaves():
    x = torch.randn(2, 4, 3, 3)
    inner = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())
    for child in (torch.jit.trace(inner, x), torch.jit.script(inner)):
        model = nn.Sequential(child, ftnn.BatchNormReLU2d(4), nn.BatchNorm2d(4), nn.ReLU()).eval()
        for function in (fusedtricks.fuse, to_fused, to_stock):
            torch.testing.assert_close(function(model)(x), model(x))


def test_modules_that_contain_each_other():
    class Child(nn.Module):
        def __init__(self, parent: nn.Module) -> None:
            super().__init__()
            self.parent = parent
            self.norm = ftnn.BatchNormReLU2d(4)

        def forward(self, x: Tensor) -> Any:
            return self.norm(x)

    class Parent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.child = Child(self)
            self.act = nn.ReLU()

        def forward(self, x: Tensor) -> Any:
            return self.act(self.child(x))

    model, x = Parent(), torch.randn(2, 4, 3, 3)
    for function in (to_stock, to_fused):
        torch.testing.assert_close(function(model)(x), model(x))


def test_results_that_are_changed_in_place():
    class Adds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(6, 6), nn.ELU())

        def forward(self, x: Tensor) -> Tensor:
            y = self.layers(x)
            y += x
            return y

    fused = to_fused(Adds())
    assert type(fused.layers[1]) is nn.ELU
    torch.testing.assert_close(step(fused, torch.ones(2, 6)), step(to_stock(fused), torch.ones(2, 6)))


def test_models_of_fuse():
    model = given(ResNet()).eval()
    x = torch.randn(2, 4, 16, 16)
    fused = fusedtricks.fuse(model)
    stock = to_stock(fused)
    assert [type(module) for module in stock.modules()] == [type(module) for module in model.modules()]
    assert fusedtricks.report(fused).chains and stock_keys(fused) == {name: name for name in model.state_dict()}
    torch.testing.assert_close(stock(x), model(x))
    ours = to_fused(fused)
    assert ours_in(ours)
    torch.testing.assert_close(ours(x), model(x))


def test_results_of_unread_code_may_be_changed():
    class Tries(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ELU()
            self.layers = nn.Sequential(nn.ELU())

        def forward(self, x: Tensor) -> Any:
            try:
                y, z = self.act(x), self.layers(x)
            except ValueError:
                raise
            return y.add_(1) + z.add_(1)

    fused = to_fused(Tries())
    assert not ours_in(fused)
    step(fused, torch.ones(2, 6))

    class Loops(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(6, 6), nn.ELU(), nn.Dropout(0.0))

        def forward(self, x: Tensor) -> Any:
            for layer in (self.layers,):
                y = layer(x)
            y += 1
            return y

    step(to_fused(Loops()).eval(), torch.ones(2, 6))
