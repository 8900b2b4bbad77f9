"""What the tests of `to_stock` and `to_fused` share: modules of every kind, and the way there and back."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

import fusedtricks.nn as ftnn
from fusedtricks import stock_keys, to_fused, to_stock

SAMPLES = {"2d": (4, 4, 6, 6), "1d": (4, 4, 6), "3d": (4, 4, 6, 6, 6)}
WINDOWS = {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 1, "ceil_mode": False}
SINGLES: list[nn.Module] = [
    *(ftnn.ReLU(inplace=True), ftnn.ReLU6(), ftnn.LeakyReLU(0.3), ftnn.ELU(0.7), ftnn.SELU(), ftnn.GELU("tanh")),
    *(ftnn.Sigmoid(), ftnn.Tanh(), ftnn.SiLU(), ftnn.Mish(), ftnn.Hardswish(), ftnn.Hardsigmoid(), ftnn.Softplus(2, 9)),
    *(ftnn.Dropout(0.3), ftnn.Dropout1d(), ftnn.Dropout2d(), ftnn.Dropout3d()),
    *(ftnn.AlphaDropout(), ftnn.FeatureAlphaDropout()),
    *(ftnn.BatchNormAct1d(4, act="identity"), ftnn.BatchNormAct2d(4, act="identity", affine=False)),
    ftnn.BatchNormAct3d(4, act="identity", track_running_stats=False),
    *(ftnn.FractionalMaxPool2d(2, 3, _random_samples=torch.rand(4, 4, 2)), ftnn.FractionalMaxPool3d(2, 3)),
]
OTHERS: list[nn.Module] = [
    *(ftnn.BatchNormReLU1d(4), ftnn.BatchNormReLU2d(4, momentum=None), ftnn.BatchNormReLU3d(4, p=0.3)),
    *(ftnn.BatchNormAct1d(4, act="elu", act_kwargs={"alpha": 0.5}), ftnn.BatchNormAct2d(4, act="gelu_tanh", p=0.2)),
    *(ftnn.BatchNormAct3d(4, act="tanh", affine=False), ftnn.BatchNormAct2d(4, act="identity", p=0.5)),
    ftnn.BatchNormActMaxPool2d(4, (3, 2), 2, 1, ceil_mode=True, act="silu"),
    *(ftnn.ActDropout("gelu", 0.3), ftnn.ActDropout("identity", 0.0), ftnn.LinearActDropout(6, 5, act="selu")),
    *(ftnn.DropConnectLinear(6, 5, act="relu"), ftnn.DropConnectLinear(6, 5, bias=False, inference="moments")),
    *(
        ftnn.DropConnectConv1d(4, 4, 3),
        ftnn.DropConnectConv2d(4, 4, 3, padding="same"),
        ftnn.DropConnectConv3d(4, 2, 3),
    ),
    *(ftnn.Dropout(0.3, mode="classic"), ftnn.DropPath(0.4), ftnn.DropPath(0.4, False)),
    *(ftnn.StochasticDepth(ftnn.Tanh(), mode=mode) for mode in ("row", "batch", "skip")),
    ftnn.FractionalMaxPool2d(2, 3, act="relu", return_indices=True, _random_samples=torch.rand(4, 4, 2)),
    ftnn.FractionalMaxPool3d(2, 3, act="tanh", _random_samples=torch.rand(4, 4, 3)),
    ftnn.SyncBatchNormAct(4, act="silu"),
    ftnn.SyncBatchNormActMaxPool2d(4, windows=WINDOWS),
]


def given(model: nn.Module) -> nn.Module:
    """With parameters and statistics that differ from their first values."""
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.copy_(torch.rand_like(tensor) + 0.5 if tensor.is_floating_point() else tensor + 3)
    return model


def sample(module: nn.Module) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(SAMPLES.get(type(module).__name__[-2:], SAMPLES["2d"]))


def no_drop(module: nn.Module) -> None:
    for name in ("p", "drop_prob"):
        if isinstance(vars(module).get(name), float):
            setattr(module, name, 0.0)


def step(model: nn.Module, x: Tensor, *more: Tensor) -> list[Any]:
    """Results, gradients and buffers of a forward and backward pass."""
    x = x.clone().requires_grad_()
    results = model(x * 1, *more)
    results = results if isinstance(results, tuple) else (results,)
    parameters = [*model.parameters()]
    gradients = torch.autograd.grad(results[0].square().sum(), [x, *parameters])
    return [*results, *gradients, *(buffer.clone() for buffer in model.buffers())]


def ours_in(model: nn.Module) -> list[str]:
    return [type(module).__name__ for module in model.modules() if type(module).__module__.startswith("fusedtricks.nn")]


def check_there_and_back(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Types, settings, keys and checkpoints, both ways."""
    stock = to_stock(model)
    back = to_fused(stock)
    assert not ours_in(stock)
    assert repr(back) == repr(model) and ours_in(back) == ours_in(model)
    assert [module.training for module in back.modules()] == [module.training for module in model.modules()]
    keys, checkpoint = stock_keys(model), model.state_dict()
    assert list(keys) == list(checkpoint) == list(back.state_dict())
    other = given(copy.deepcopy(stock))
    other.load_state_dict({keys[name]: value for name, value in checkpoint.items()}, strict=True)
    torch.testing.assert_close(other.state_dict(), stock.state_dict(), rtol=0, atol=0)
    theirs = stock.state_dict()
    back.load_state_dict({name: theirs[keys[name]] for name in keys}, strict=True)
    torch.testing.assert_close(back.state_dict(), checkpoint, rtol=0, atol=0)
    return stock, back


def name_of(module: nn.Module) -> str:
    return f"{type(module).__name__}-{getattr(module, 'act', '')}-{getattr(module, 'mode', '')}"


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.first = ftnn.BatchNormReLU2d(4)
        self.second = ftnn.BatchNormAct2d(4, act="silu")
        self.tail = ftnn.ActDropout("tanh", 0.0)
        self.path = ftnn.DropPath(0.0)
        self.none = None
        self.lists = nn.ModuleList([ftnn.BatchNormReLU2d(4), ftnn.ReLU()])
        self.named = nn.ModuleDict({"norm": ftnn.BatchNormReLU2d(4)})

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.conv(self.first(x)), x)
        y = self.tail(y, residual=x)
        for layer in self.lists:
            y = layer(y)
        return self.path(self.named["norm"](y), x)
