"""Modules that are replaced one for one: the object gets another class, so everything else about it stays."""

from __future__ import annotations

from typing import Any

from torch import nn

from .. import nn as ftnn
from ..functional._arguments import activation_arguments
from ..fusing.layers import classes
from ..fusing.layers.activations import MODULE_NAMES
from ..fusing.layers.classes import set_class
from . import layers
from .parts import FIRST, is_split

_NAMES = (
    *MODULE_NAMES,
    *("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout"),
)
STOCK: dict[type[nn.Module], type[nn.Module]] = {getattr(ftnn, name): getattr(nn, name) for name in _NAMES}
"""Our classes that do what one of `torch.nn` does."""

_DROP_CONNECTS = ("DropConnectLinear", "DropConnectConv1d", "DropConnectConv2d", "DropConnectConv3d")
PLAIN: dict[type[nn.Module], type[nn.Module]] = {
    getattr(ftnn, name): getattr(layers, name) for name in (*_DROP_CONNECTS, "DropPath", "StochasticDepth")
}
"""Our classes that `torch.nn` has nothing like, and theirs in `layers`."""

_NORMS: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: ftnn.BatchNormAct1d,
    nn.BatchNorm2d: ftnn.BatchNormAct2d,
    nn.BatchNorm3d: ftnn.BatchNormAct3d,
}
_POOLS: dict[type[nn.Module], type[nn.Module]] = {
    nn.FractionalMaxPool2d: ftnn.FractionalMaxPool2d,
    nn.FractionalMaxPool3d: ftnn.FractionalMaxPool3d,
}
_FUSED: dict[type[nn.Module], type[nn.Module]] = {
    **{stock: ours for ours, stock in (STOCK | PLAIN).items()},
    **_NORMS,
    **_POOLS,
    layers.StochasticDepthWithArguments: ftnn.StochasticDepth,
    layers.ClassicDropout: ftnn.Dropout,
}

for _kind in (*_FUSED, nn.SyncBatchNorm, nn.Linear, nn.MaxPool2d, nn.Identity, nn.Sequential):
    if not classes.is_remembered(_kind):
        classes.remember(_kind)


def is_our_class(kind: type[nn.Module]) -> bool:
    """Whether a class is one of ours, not derived from one."""
    return kind in STOCK or kind in PLAIN or kind in FIRST


def is_ours(module: nn.Module) -> bool:
    """Whether a module is of exactly one of our classes."""
    return is_our_class(type(module))


def is_single(module: nn.Module) -> bool:
    """Whether one of our modules becomes a single one."""
    return type(module) not in FIRST or not is_split(module)


def act_parameters(module: Any) -> list[float]:
    """The activation's parameters as `layers.activate` takes them; never empty, for TorchScript."""
    return [*activation_arguments(module.act, module.act_kwargs), 0.0]


def to_stock(module: Any, takes_more: bool) -> None:
    """Changes one of our modules into one of `torch.nn` or `layers`."""
    kind = type(module)
    stock: Any = STOCK.get(kind) or PLAIN.get(kind) or FIRST.get(kind)
    if kind in FIRST:
        for name in ("act", "act_kwargs", "p"):
            vars(module).pop(name, None)
    elif kind is ftnn.Dropout:
        mode = vars(module).pop("mode", "inverted")
        stock = layers.ClassicDropout if mode == "classic" else stock
    elif kind is ftnn.StochasticDepth and takes_more:
        stock = layers.StochasticDepthWithArguments
    elif hasattr(module, "act_kwargs"):
        module.act_parameters = act_parameters(module)
    set_class(module, stock)


def is_known(module: nn.Module) -> bool:
    """Whether a module can be changed by `to_fused`: of exactly a known class whose forward is what it was."""
    kind = type(module)
    return kind in _FUSED and classes.is_unchanged(kind) and "forward" not in vars(module)


def to_fused(module: Any) -> None:
    """The inverse of `to_stock`."""
    kind = type(module)
    if kind in _NORMS or kind in _POOLS:
        vars(module).update(act="identity", act_kwargs={}, **({"p": 0.0} if kind in _NORMS else {}))
    elif kind in (nn.Dropout, layers.ClassicDropout):
        module.mode = "inverted" if kind is nn.Dropout else "classic"
    vars(module).pop("act_parameters", None)
    set_class(module, _FUSED[kind])
