"""The stock layers that `fusedtricks demo` and the benchmarks compare ours with.

A network is written once in terms of `Layers`, then built from `STOCK` and from `FUSED`. `bytes_kept_for_backward`
measures how much memory each keeps.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from . import _C, eager
from . import nn as fused_nn
from .functional import ACTIVATIONS as ACTIVATION_PARAMETERS
from .fusing.install.blocks import recompute_of
from .memory.accounts import bytes_kept

_LAYERS: dict[str, type[nn.Module]] = {
    name.lower(): layer for name, layer in vars(nn).items() if isinstance(layer, type) and issubclass(layer, nn.Module)
}


class Formula(nn.Module):
    """An activation that torch has no layer of, as its formula."""

    def __init__(self, act: str, **parameters: float) -> None:
        super().__init__()
        self.act = act
        self.parameters_of_act = parameters

    def forward(self, x: Tensor) -> Tensor:
        return eager.activation(x, self.act, **self.parameters_of_act)


def activation_layer(act: str, **settings: Any) -> nn.Module:
    """torch's layer of an activation: the class of that name, whatever its capitals, or `Formula` if there is none."""
    if act == "gelu_tanh":
        return nn.GELU(approximate="tanh")
    layer = _LAYERS.get(act.replace("_", ""))
    return layer(**settings) if layer else Formula(act, **settings)


def _after_batch_norm(act: str) -> Callable[[], nn.Module]:
    layer = type(activation_layer(act))
    in_place = "inplace" in inspect.signature(layer).parameters
    keeps_result = _C.activation_facts(act, list(ACTIVATION_PARAMETERS[act].values()))["keeps_result"]
    return partial(activation_layer, act, **({"inplace": True} if in_place and keeps_result else {}))


ACTIVATIONS = {act: _after_batch_norm(act) for act in ACTIVATION_PARAMETERS if act != "identity"}
"""Creates the stock layer of each activation as used after BatchNorm: in place if the gradient allows it."""


class _NormAct(_BatchNorm):
    """Stock BatchNorm, then the residual added in place, then the stock activation layer."""

    def __init__(self, num_features: int, *, act: str = "relu") -> None:
        super().__init__(num_features)
        self.act = None if act == "identity" else ACTIVATIONS[act]()

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = super().forward(x)
        if residual is not None:
            y += residual
        return y if self.act is None else self.act(y)


class NormAct1d(_NormAct, nn.BatchNorm1d):
    """`activation(BatchNorm1d(x) [+ residual])` with stock layers."""


class NormAct2d(_NormAct, nn.BatchNorm2d):
    """`activation(BatchNorm2d(x) [+ residual])` with stock layers."""


class NormAct3d(_NormAct, nn.BatchNorm3d):
    """`activation(BatchNorm3d(x) [+ residual])` with stock layers."""


@dataclass(frozen=True)
class Layers:
    """The layers a network is built from. Stock and fused networks have the same `state_dict` keys and shapes.

    Attributes:
        name: "stock" or "fused".
        norm_act: `(num_features, act=...)` -> a module called with `(x, residual=None)`.
        relu: creates a standalone ReLU layer.
        dropout: `(p)` -> a dropout layer.
    """

    name: str
    norm_act: Callable[..., nn.Module]
    relu: Callable[[], nn.Module]
    dropout: Callable[[float], nn.Module]


STOCK = Layers("stock", NormAct2d, lambda: nn.ReLU(inplace=True), nn.Dropout)
FUSED = Layers("fused", fused_nn.BatchNormAct2d, lambda: fused_nn.ReLU(inplace=True), fused_nn.Dropout)


def initialise_convolutions(network: nn.Module) -> None:
    """He initialisation (normal, fan out) of every convolution; other layers keep torch's initialisation."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def bytes_kept_for_backward(forward: Callable[..., object], *inputs: Tensor) -> int:
    """Bytes of storage that a forward pass keeps for backward, not counting parameters and buffers.

    A model from `fuse(..., recompute=...)` recomputes meanwhile, as it does otherwise.
    """
    setting = recompute_of(forward) if isinstance(forward, nn.Module) else None
    return bytes_kept(forward, *inputs, recompute=setting.depth if setting else False)
