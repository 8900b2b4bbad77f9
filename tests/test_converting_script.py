"""TorchScript compiles models with our modules."""

from __future__ import annotations

import copy

import pytest
import torch
from converting_case import OTHERS, SINGLES, Block, given, name_of, no_drop, ours_in, sample, step
from fuse_models import ResNet
from torch import Tensor, nn

import fusedtricks
import fusedtricks.nn as ftnn
from fusedtricks import to_stock
from fusedtricks.converting.layers import activate
from fusedtricks.functional import ACTIVATIONS, activation


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("convert", [lambda m: m, to_stock], ids=["ours", "stock"])
@pytest.mark.parametrize("module", [m for m in (*SINGLES, *OTHERS) if not isinstance(m, nn.SyncBatchNorm)], ids=name_of)
def test_script(module, convert, training):
    module = given(copy.deepcopy(module)).train(training)
    no_drop(module)
    model = nn.Sequential(convert(copy.deepcopy(module)))
    kinds, keys = [type(m) for m in model.modules()], list(model.state_dict())
    compiled = torch.jit.script(model)
    assert list(compiled.state_dict()) == list(model.state_dict()) == keys
    x = sample(module)
    if "Fractional" in type(module).__name__ and module._random_samples is None:
        assert compiled(x).shape == module(x).shape
        return
    expected = step(nn.Sequential(copy.deepcopy(module)), x)
    torch.testing.assert_close(step(compiled, x), expected)
    torch.testing.assert_close(model(x), compiled(x))
    assert [type(m) for m in model.modules()] == kinds  # the model that was given is as it was


def test_script_of_residuals_and_whole_models():
    model = given(nn.Sequential(Block(), Block())).eval()
    x = sample(model)
    for made in (model, to_stock(model), copy.deepcopy(model)):
        compiled = torch.jit.script(made)
        assert not ours_in(to_stock(made))  # also before the next call
        torch.testing.assert_close(compiled(x), model(x))
    stock = given(ResNet()).eval()
    fused = fusedtricks.fuse(stock)
    kinds = [type(module) for module in fused.modules()]
    compiled, x = torch.jit.script(fused), torch.randn(2, 4, 16, 16)
    copied = copy.deepcopy(fused)
    torch.testing.assert_close([compiled(x), fused(x), copied(x)], [stock(x)] * 3)
    assert [type(module) for module in fused.modules()] == kinds
    for inplace in (False, True):
        torch.jit.script(fused)
        unfused = fusedtricks.unfuse(fused, inplace=inplace)
        assert [type(module) for module in unfused.modules()] == [type(module) for module in stock.modules()]


def test_script_again_with_other_settings():
    model = nn.Sequential(ftnn.BatchNormAct2d(4, act="leaky_relu", act_kwargs={"negative_slope": 0.1})).eval()
    torch.jit.script(model)
    model[0].act_kwargs = {"negative_slope": 0.9}
    x = sample(model)
    torch.testing.assert_close(torch.jit.script(model)(x), model(x))


def test_script_of_derived_classes():
    class Mine(ftnn.BatchNormReLU2d):
        pass

    model, x = nn.Sequential(Mine(4)).eval(), torch.randn(2, 4, 3, 3)
    expected = model(x)
    torch.testing.assert_close(torch.jit.script(model)(x), expected)
    torch.testing.assert_close(model(x), expected)
    assert type(model[0]) is Mine


def test_after_script():
    class Calls(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = ftnn.BatchNormReLU2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm.forward(x)

    model, x = Calls().eval(), torch.randn(2, 4, 3, 3)
    expected = model(x)
    torch.jit.script(model)
    torch.testing.assert_close(model(x), expected)  # does not call the module
    torch.jit.script(model)
    kind = type(model.norm)
    model.norm.__class__ = type("Sharded", (kind,), {})  # as FSDP does
    torch.testing.assert_close(model.norm(x), expected)
    model.norm.__class__ = kind
    nn.utils.parametrize.register_parametrization(model.norm, "weight", nn.Identity())
    torch.testing.assert_close(model.norm(x), expected)


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_plain_activations(act):
    x = torch.linspace(-5, 5, 31)
    torch.testing.assert_close(activate(x, act, [*ACTIVATIONS[act].values(), 0.0]), activation(x, act))
