"""Conversion to synchronised BatchNorm: either it keeps the activation or it is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from fuse_models import ResNet
from torch import nn

import fusedtricks
import fusedtricks.nn as ftnn


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(4, 4, 3),
        ftnn.BatchNormAct2d(4, momentum=0.3, act="leaky_relu", act_kwargs={"negative_slope": 0.2}),
        nn.Sequential(nn.BatchNorm2d(4, affine=False), ftnn.BatchNormReLU2d(4, track_running_stats=False)),
    )


def step(model: nn.Module, device: torch.device) -> list[torch.Tensor]:
    """In training mode only on devices where synchronised BatchNorm can train: not on the CPU."""
    torch.manual_seed(0)
    x = torch.randn(5, 4, 8, 8, device=device, dtype=next(model.parameters()).dtype)
    y = model.train(device.type == "cuda")(x)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), list(model.parameters())), *model.state_dict().values()]


def test_our_converter(device):
    # The gradient of the convolution's bias is zero; in float32 it would consist only of rounding errors.
    model = network().to(device, torch.float64)
    model(torch.randn(5, 4, 8, 8, device=device, dtype=torch.float64))
    model[2][1] = ftnn.BatchNormAct2d(4, act="silu", device=device, dtype=torch.float64)
    converted = ftnn.convert_sync_batchnorm(copy.deepcopy(model))
    assert isinstance(converted[1], ftnn.SyncBatchNormAct) and type(converted[2][0]) is nn.SyncBatchNorm
    assert list(converted.state_dict()) == list(model.state_dict())
    assert "momentum=0.3" in repr(converted[1]) and "act=leaky_relu, negative_slope=0.2" in repr(converted[1])
    torch.testing.assert_close(step(converted, device), step(model, device))
    assert isinstance(ftnn.convert_sync_batchnorm(ftnn.BatchNormReLU1d(3)), ftnn.SyncBatchNormAct)


def test_residual(device):
    bn = ftnn.BatchNormAct2d(4, act="gelu", device=device).eval()
    x, residual = torch.randn(2, 3, 4, 5, 5, device=device)
    torch.testing.assert_close(ftnn.convert_sync_batchnorm(copy.deepcopy(bn))(x, residual), bn(x, residual))


def test_parameters_are_shared_and_frozen_ones_stay_so():
    bn = ftnn.BatchNormReLU2d(4).eval()
    bn.weight.requires_grad_(False)
    converted = ftnn.convert_sync_batchnorm(bn)
    assert converted.weight is bn.weight and converted.bias is bn.bias
    assert converted.running_mean is bn.running_mean and not converted.training


def test_the_stock_converter_is_refused():
    """Also if the model moves in between."""
    for then in (lambda m: m, nn.Module.double, copy.deepcopy, lambda m: nn.SyncBatchNorm.convert_sync_batchnorm(m)):
        converted = then(nn.SyncBatchNorm.convert_sync_batchnorm(network())).eval()
        with pytest.raises(
            RuntimeError, match=r"running_var of BatchNormAct2d \(leaky_relu\) .* activation.*\.convert_sync_batchnorm"
        ):
            converted(torch.randn(2, 4, 8, 8, dtype=converted[0].weight.dtype))
    twice = nn.SyncBatchNorm.convert_sync_batchnorm(ftnn.convert_sync_batchnorm(network())).eval()
    with pytest.raises(RuntimeError, match=r"running_var of SyncBatchNormAct \(leaky_relu\) .* activation"):
        twice(torch.randn(2, 4, 8, 8))
    assert type(nn.SyncBatchNorm.convert_sync_batchnorm(ftnn.BatchNormAct2d(4, act="identity"))) is nn.SyncBatchNorm


@pytest.mark.parametrize("convert", [nn.SyncBatchNorm.convert_sync_batchnorm, ftnn.convert_sync_batchnorm])
def test_fused_models(convert, device):
    """The members of a chain run separately, so nothing is lost."""
    stock = ResNet().to(device)
    fused = convert(fusedtricks.fuse(stock))
    expected = nn.SyncBatchNorm.convert_sync_batchnorm(stock)
    assert sum(type(m) is nn.SyncBatchNorm for m in fused.modules()) == 6
    torch.testing.assert_close(step(fused, device), step(expected, device))
