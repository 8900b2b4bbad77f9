"""`to_stock`, `to_fused`, `stock_keys`: every module and whole models, there and back."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from converting_case import OTHERS, SINGLES, Block, check_there_and_back, given, name_of, no_drop, ours_in, sample, step
from torch import Tensor, nn
from torch.nn.utils import prune

import fusedtricks.nn as ftnn
from fusedtricks import stock_keys, to_fused, to_stock


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("module", [*SINGLES, *OTHERS], ids=name_of)
def test_there_and_back(module, training):
    module = given(copy.deepcopy(module)).train(training)
    check_there_and_back(module)
    no_drop(module)
    stock = to_stock(module)
    x = sample(module)
    if "Fractional" in type(module).__name__ and module._random_samples is None:
        assert stock(x).shape == module(x).shape
        return
    torch.testing.assert_close(step(stock, x), step(module, x))
    torch.testing.assert_close(step(to_fused(stock), x), step(module, x))


@pytest.mark.parametrize("module", SINGLES, ids=name_of)
def test_singles_become_what_torch_has(module):
    stock = to_stock(module)
    assert type(stock).__module__.startswith("torch.nn.modules.") and stock is not module
    assert list(stock.state_dict()) == list(module.state_dict())


def test_writes_to_the_input_stay():
    for layers in (
        *((nn.ReLU(inplace=True), nn.Dropout(0.0)), (nn.ReLU(inplace=True), nn.Dropout(0.0), nn.Flatten())),
        (nn.Identity(), nn.Dropout(0.0, inplace=True)),
    ):
        x, y = torch.full((2, 3), -1.0), torch.full((2, 3), -1.0)
        nn.Sequential(*layers)(x)
        fused = to_fused(nn.Sequential(*layers))
        fused(y)
        torch.testing.assert_close(x, y)
        assert "ActDropout" not in ours_in(fused)


@pytest.mark.parametrize("more", [[], [nn.Identity()], [nn.Flatten()], [nn.Identity(), nn.Flatten()]])
def test_identities_after_ours(more):
    stock, _ = check_there_and_back(nn.Sequential(ftnn.BatchNormReLU2d(4), *more))
    assert (type(stock[0]) is nn.BatchNorm2d) == (len(more) == 2)


def test_inplace_keeps_every_object():
    model = nn.Sequential(nn.Conv2d(4, 4, 1), ftnn.BatchNormReLU2d(4), ftnn.GELU())
    model[1].weight.requires_grad_(False)
    parameters, modules = [*model.parameters()], [*model]
    assert to_stock(model, inplace=True) is model and [*model] == modules
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert to_fused(model, inplace=True) is model and [*model] == modules
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert not model[1].weight.requires_grad and type(model[1]) is ftnn.BatchNormReLU2d
    norm = ftnn.BatchNormReLU2d(4)
    assert to_stock(norm, inplace=True) is norm and to_fused(norm, inplace=True) is norm


class Unreadable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = ftnn.BatchNormReLU2d(4)

    def forward(self, x: Tensor) -> Tensor:
        try:
            return self.norm(x, x)
        except ValueError:
            return x


@pytest.mark.parametrize("training", [False, True])
def test_residuals(training):
    model = given(nn.Sequential(Block(), Block(), Unreadable())).double().train(training)
    stock, back = check_there_and_back(model)
    block = stock[0]
    assert type(block.first) is nn.Sequential
    adding = [block.second, block.tail, stock[2].norm, block.lists[0], block.named["norm"]]
    assert all(isinstance(module, nn.Sequential) and type(module) is not nn.Sequential for module in adding)
    assert type(block.lists[1]) is nn.ReLU and block.none is None
    x = sample(model).double()
    expected = step(copy.deepcopy(model), x)
    torch.testing.assert_close(step(stock, x), expected)
    torch.testing.assert_close(step(back, x), expected)


def test_shared_modules_stay_one():
    norm = given(ftnn.BatchNormReLU2d(4))
    model = nn.ModuleDict({"a": norm, "b": nn.Sequential(norm, nn.Identity(), ftnn.ReLU()), "c": nn.ModuleList([norm])})
    stock, back = check_there_and_back(model)
    assert stock["a"] is stock["b"][0] is stock["c"][0] and isinstance(stock["a"], nn.Sequential)
    assert back["a"] is back["b"][0] is back["c"][0]


def test_hooks_move():
    seen: list[Tensor] = []
    model = nn.Sequential(ftnn.BatchNormReLU2d(4), nn.Identity(), ftnn.Tanh())
    model[0].register_forward_hook(lambda module, args, result: seen.append(result))
    model[2].register_full_backward_hook(lambda module, before, after: seen.append(after[0]))
    x = sample(model).requires_grad_()
    model(x).sum().backward()
    expected, count = list(seen), len(seen)
    seen.clear()
    stock = to_stock(model)
    assert type(stock[0]) is nn.Sequential  # not unfolded: the hook sees the activation's result
    stock(x).sum().backward()
    assert len(seen) == count == 2
    torch.testing.assert_close(seen, expected)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda m: setattr(m, "forward", m.forward), "forward of its own"),
        (lambda m: m.register_load_state_dict_post_hook(lambda *a: None), "hooks on its state_dict"),
        (lambda m: m.add_module("extra", nn.ReLU()), "modules in it"),
        (lambda m: torch.nn.utils.parametrize.register_parametrization(m, "weight", nn.Tanh()), "parametrised"),
        (lambda m: prune.random_unstructured(m, "weight", 0.5), "computed or further parameters"),
    ],
)
def test_refusals(spoil, why):
    model = nn.Sequential(ftnn.ReLU(), nn.Sequential(ftnn.LinearActDropout(6, 6)))
    spoil(model[1][0])
    with pytest.raises(ValueError, match=rf"^to_stock\(\): 1\.0 .*{why}"):
        to_stock(model, inplace=True)
    assert type(model[0]) is ftnn.ReLU  # unchanged
    for function in (to_stock, to_fused, stock_keys):
        with pytest.raises(TypeError, match=r"must be torch\.nn\.Module"):
            function(3)


def test_derived_classes_stay():
    class Mine(ftnn.BatchNormReLU2d):
        pass

    class MyNorm(nn.BatchNorm2d):
        pass

    assert type(to_stock(nn.Sequential(Mine(4)))[0]) is Mine
    assert type(to_fused(nn.Sequential(MyNorm(4), nn.ReLU()))[0]) is MyNorm


def vgg() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.GELU(), nn.Dropout(0.0), nn.BatchNorm2d(4)),
        nn.Sequential(nn.BatchNorm2d(4), nn.ELU(0.5), nn.Dropout(0.3)),
        *(nn.AvgPool2d(3), nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Dropout(0.0), nn.Linear(3, 3), nn.Tanh()),
    )


@pytest.mark.parametrize("training", [False, True])
def test_a_stock_network_there_and_back(training):
    model = given(vgg()).train(training)
    fused = to_fused(model)
    assert [type(module) for module in fused[:5]] == [
        *(nn.Conv2d, ftnn.BatchNormReLU2d, nn.Identity, nn.MaxPool2d, nn.Conv2d)
    ]
    assert type(fused[5]) is ftnn.BatchNormAct2d and type(fused[12]) is ftnn.LinearActDropout
    assert type(fused[7]) is ftnn.Dropout  # frozen BatchNorms do not freeze it
    assert type(fused[8]) is type(fused[9]) is ftnn.BatchNormAct2d and fused[8].act == "identity"
    assert stock_keys(fused)["9.weight"] == "9.0.weight" and stock_keys(fused)["1.weight"] == "1.weight"
    assert set(stock_keys(fused).values()) == set(model.state_dict())
    stock = to_stock(fused)
    stock.load_state_dict(model.state_dict(), strict=True)
    assert repr(stock) == repr(model)
    if training:
        fused[9].p = model[9][2].p = 0.0
    x = torch.randn(3, 4, 6, 6)
    expected = step(model, x)
    torch.testing.assert_close(step(fused, x), expected)


def test_neighbours_that_stay_apart():
    def kinds(*layers: nn.Module, change: Any = lambda m: None) -> list[type]:
        model = nn.Sequential(*layers, nn.Flatten())
        change(model)
        return [type(module) for module in to_fused(model)][:2]

    apart = [ftnn.BatchNormAct2d, ftnn.ReLU]
    norm, relu = nn.BatchNorm2d(4), nn.ReLU()
    assert kinds(norm, relu) == [ftnn.BatchNormReLU2d, nn.Identity]
    assert kinds(norm, relu, change=lambda m: m[0].eval()) == apart
    assert kinds(norm.train(), relu, change=lambda m: m[1].register_forward_hook(print)) == apart
    assert kinds(norm, nn.ReLU(), nn.Sequential(norm)) == apart

    class Holds(nn.Module):
        def __init__(self, also_calls: bool) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
            self.norms = nn.ModuleList([] if also_calls else [self.layers[0]])
            self.also_calls = also_calls

        def forward(self, x: Tensor) -> Any:
            y = self.layers(x)
            return (y, self.layers[0](x)) if self.also_calls else y

    for also_calls in (False, True):
        assert [type(module) for module in to_fused(Holds(also_calls)).layers][:2] == apart

    class Taps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())

        def forward(self, x: Tensor) -> list[Tensor]:
            results = []
            for layer in self.layers:
                x = layer(x)
                results.append(x)
            return results

    assert [type(module) for module in to_fused(Taps()).layers][:2] == apart
