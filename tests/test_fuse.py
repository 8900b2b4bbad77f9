"""fuse: every model gives the stock model's results, gradients and statistics, and has the expected chains."""

from __future__ import annotations

import copy

import fuse_models
import pytest
import torch
from fuse_case import assert_same_training, chains, image, train
from fuse_models import CASES, BasicBlock, DenseBlock, ResNet
from torch import nn

import fusedtricks


@pytest.mark.parametrize("name", CASES)
def test_models(name):
    make, expected, reason = CASES[name]
    stock = make().double()
    before = copy.deepcopy(stock.state_dict())
    fused = fusedtricks.fuse(stock)
    torch.testing.assert_close(dict(stock.state_dict()), dict(before))
    report = fusedtricks.report(fused)
    assert len(report.chains) == expected, report
    assert reason in str(report)
    assert list(fused.state_dict()) == list(stock.state_dict())
    assert_same_training(fused, stock)
    stock.load_state_dict(fused.state_dict())
    fused.load_state_dict(before)
    fused.load_state_dict(stock.state_dict())
    torch.testing.assert_close(fused.eval()(image(2, 4, 6, 6)).shape, stock.eval()(image(2, 4, 6, 6)).shape)
    assert fused(image(1, 4, 9, 9)).shape == stock(image(1, 4, 9, 9)).shape


def test_that_chains_run_fused(calls):
    """Chains run in the kernels, not in the modules they can fall back on."""
    fusedtricks.fuse(ResNet().double())(image())
    assert calls == ["relu pooled", "relu", "+ relu", "relu", "identity", "+ relu"]


def test_that_layers_given_lists_run_fused(calls):
    fusedtricks.fuse(DenseBlock().double())(image())
    assert calls[:3] == ["relu"] * 3 and calls[-1] == "relu"


@pytest.mark.parametrize("model", ["ResNet", "AcrossModules", "NestedSequential", "NormActs", "Mlp"])
def test_identity_of_the_model(model):
    """Classes, names, parameters: everything except the forwards stays the user's."""
    stock = CASES[model].make()
    parameters = [id(p) for p in stock.parameters()]
    modules = dict(stock.named_modules())
    text = repr(stock)
    fused = fusedtricks.fuse(stock, inplace=True)
    assert fused is stock
    assert [id(p) for p in fused.parameters()] == parameters
    assert dict(fused.named_modules()) == modules
    assert repr(fused) == text
    for module in fused.modules():
        assert isinstance(
            module, getattr(fuse_models, type(module).__name__, None) or getattr(nn, type(module).__name__)
        )


def test_fuse_copies_unless_in_place():
    stock = ResNet().double()
    fused = fusedtricks.fuse(stock)
    assert fused is not stock
    assert [type(m) for m in stock.modules()] == [type(m) for m in ResNet().modules()]
    assert isinstance(fused.layers[0], BasicBlock) and type(fused.layers[0]) is not type(stock.layers[0])
    assert not {p.data_ptr() for p in fused.parameters()} & {p.data_ptr() for p in stock.parameters()}


def test_fused_twice_is_fused_once():
    fused = fusedtricks.fuse(ResNet())
    assert fusedtricks.fuse(fused) is fused


@pytest.mark.parametrize("name", CASES)
def test_unfuse(name):
    """fuse followed by unfuse leaves modules and state as they were."""
    stock = CASES[name].make().double()
    fused = fusedtricks.fuse(stock)
    train(fused, [image()])
    again = fusedtricks.unfuse(fused)
    assert [type(m) for m in again.modules()] == [type(m) for m in stock.modules()]
    assert [set(vars(m)) for m in again.modules()] == [set(vars(m)) for m in stock.modules()]
    torch.testing.assert_close(dict(again.state_dict()), dict(fused.state_dict()))
    assert chains(fused) == CASES[name].chains
    assert fusedtricks.unfuse(stock) is stock
    assert fusedtricks.unfuse(fused, inplace=True) is fused and type(fused) is type(stock)
