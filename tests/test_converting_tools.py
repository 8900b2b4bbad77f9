"""Tools that fold, quantise and freeze take what `to_stock` gives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from converting_case import Block, given, sample
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse as fuse_graph
from torch.nn.utils.fusion import fuse_conv_bn_eval

import fusedtricks.nn as ftnn
from fusedtricks import to_stock


def test_folding():
    model = given(nn.Sequential(nn.Conv2d(4, 4, 3), ftnn.BatchNormReLU2d(4), nn.Identity(), ftnn.Tanh())).eval()
    x = sample(model)
    stock = to_stock(model)
    folded = nn.Sequential(fuse_conv_bn_eval(stock[0], stock[1]), *stock[2:])
    torch.testing.assert_close(folded(x), model(x))
    by_graph = fuse_graph(stock)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in by_graph.modules())
    torch.testing.assert_close(by_graph(x), model(x))
    torch.testing.assert_close(fuse_graph(model)(x), model(x))  # leaves ours alone


def test_quantisation():
    model = given(nn.Sequential(nn.Conv2d(4, 4, 3), ftnn.BatchNormReLU2d(4), nn.Identity())).eval()
    with pytest.raises((AssertionError, NotImplementedError)):
        torch.ao.quantization.fuse_modules(model, [["0", "1"]])
    fused = torch.ao.quantization.fuse_modules(to_stock(model), [["0", "1"]])
    torch.testing.assert_close(fused(sample(model)), model(sample(model)))


class Frozen(nn.Module):
    """As detectors freeze a BatchNorm."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, getattr(norm, name).data.clone())
        self.eps = norm.eps

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


def test_freezing():
    def freeze(module: nn.Module) -> nn.Module:
        if isinstance(module, nn.BatchNorm2d):
            return Frozen(module)
        for name, child in module.named_children():
            setattr(module, name, freeze(child))
        return module

    model = given(nn.Sequential(Block(), ftnn.BatchNormActMaxPool2d(4, 2))).eval()
    torch.testing.assert_close(freeze(to_stock(model))(sample(model)), model(sample(model)))
