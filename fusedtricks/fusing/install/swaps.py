"""Replaces stock modules one for one: the object gets another class, so everything else about it stays.

Each new class computes the same as its stock class, using our kernels if there are any for the input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ...nn._tracing import Proxy, traced
from ...nn.batchnorm import batch_norm_act_of
from ..layers import activations, members
from ..layers.classes import replaces, set_class
from ..running import masks, norms


def _activation_forward(stock: type[nn.Module]) -> Callable[..., Tensor]:
    def forward(self: nn.Module, input: Tensor) -> Tensor:
        activation = activations.of_module(self)
        if activation is None or not members.is_ours_alone(input):
            return stock.forward(self, input)
        return norms.activation(input, activation.name, bool(getattr(self, "inplace", False)), **activation.parameters)

    return forward


def _norm_forward(self: Any, input: Tensor) -> Tensor:
    if not members.has_kernels(input):
        return nn.modules.batchnorm._BatchNorm.forward(self, input)
    return batch_norm_act_of(self, input, None, "identity", None)


def _forward_by(function: Callable[..., Any], *names: str) -> Callable[..., Any]:
    """A forward that passes these attributes on to the function."""

    def forward(self: Any, input: Tensor) -> Any:
        return function(input, *[getattr(self, name) for name in names])

    return forward


_DROPOUT = ("p", "training", "inplace")
_ALPHA_DROPOUT = ("p", "training")  # stock's alpha dropout modules are never in place
_POOL = ("kernel_size", "output_size", "output_ratio", "return_indices", "_random_samples")
ACTIVATIONS = activations.MODULE_NAMES
NORMS = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d")
_RANDOM_FORWARDS = {
    "Dropout": _forward_by(masks.dropout, *_DROPOUT),
    "Dropout1d": _forward_by(masks.dropout1d, *_DROPOUT),
    "Dropout2d": _forward_by(masks.dropout2d, *_DROPOUT),
    "Dropout3d": _forward_by(masks.dropout3d, *_DROPOUT),
    "AlphaDropout": _forward_by(masks.alpha_dropout, *_ALPHA_DROPOUT),
    "FeatureAlphaDropout": _forward_by(masks.feature_alpha_dropout, *_ALPHA_DROPOUT),
    "FractionalMaxPool2d": _forward_by(masks.fractional_max_pool2d, *_POOL),
    "FractionalMaxPool3d": _forward_by(masks.fractional_max_pool3d, *_POOL),
}
RANDOM = tuple(_RANDOM_FORWARDS)
"""Layers that draw random numbers; ours draw different ones than stock's."""

TWINS: dict[type[nn.Module], type[nn.Module]] = {}
"""The classes that replace stock's."""


def _define(name: str, forward: Callable[..., Any]) -> None:
    """Defines a subclass of the stock class; pickle finds it by name in this file."""
    stock = getattr(nn, name)
    own = stock.forward

    def traceable(self: nn.Module, input: Tensor) -> Any:
        if stock.forward is not own:  # replaced since
            return stock.forward(self, input)
        if isinstance(input, Proxy):
            return traced(self, input)
        return forward(self, input)

    twin = type(name, (stock,), {"__module__": __name__, "__doc__": f"`torch.nn.{name}`, fused.", "forward": traceable})
    globals()[name] = TWINS[stock] = twin
    replaces(twin, stock)
    members.recognise(twin, stock)


for _name in ACTIVATIONS:
    _define(_name, _activation_forward(getattr(nn, _name)))
for _name in NORMS:
    _define(_name, _norm_forward)
for _name, _forward in _RANDOM_FORWARDS.items():
    _define(_name, _forward)


def twin(module: nn.Module) -> type[nn.Module] | None:
    """The class that can replace a module's stock class; None for any other class, including derived ones."""
    return None if members.is_patched(module) else TWINS.get(type(module))


def is_swapped(module: nn.Module) -> bool:
    return type(module).__module__ == __name__


def swap(module: nn.Module) -> None:
    set_class(module, TWINS[type(module)])


def swap_back(module: nn.Module) -> None:
    if is_swapped(module):
        set_class(module, type(module).__mro__[1])
