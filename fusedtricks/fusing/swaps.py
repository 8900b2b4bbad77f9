"""Stock modules replaced one for one: the same object with another class, so that everything about it stays.

Each computes what its stock class does, by our kernels where there are some for the input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.fx import Proxy

from ..nn.batchnorm import batch_norm_act_of
from . import activations, run_time


def _activation_forward(stock: type[nn.Module]) -> Callable[..., Tensor]:
    def forward(self: nn.Module, input: Tensor) -> Tensor:
        activation = activations.of_module(self)
        if activation is None or not run_time.is_ours_alone(input):
            return stock.forward(self, input)
        return run_time.activation(
            input, activation.name, bool(getattr(self, "inplace", False)), **activation.parameters
        )

    return forward


def _norm_forward(self: Any, input: Tensor) -> Tensor:
    if not run_time.has_kernels(input) or not run_time.has_usual_state(self):
        return nn.modules.batchnorm._BatchNorm.forward(self, input)
    return batch_norm_act_of(self, input, None, "identity", None)


def _dropout_forward(self: Any, input: Tensor) -> Tensor:
    return run_time.dropout(input, self.p, self.training, self.inplace)


ACTIVATIONS = activations.MODULE_NAMES
NORMS = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d")
DROPOUTS = ("Dropout",)
_TWINS: dict[type[nn.Module], type[nn.Module]] = {}


def _define(name: str, forward: Callable[..., Tensor]) -> type[nn.Module]:
    """A subclass of the stock class, found by pickle under its name in this file."""
    stock = getattr(nn, name)

    def traceable(self: nn.Module, input: Tensor) -> Any:
        if isinstance(input, Proxy):  # of a user's torch.fx trace, for which stock modules are leaves
            return input.tracer.create_proxy("call_module", input.tracer.path_of_module(self), (input,), {})
        return forward(self, input)

    twin = type(name, (stock,), {"__module__": __name__, "__doc__": f"`torch.nn.{name}`, fused.", "forward": traceable})
    globals()[name] = _TWINS[stock] = twin
    return twin


for _name in ACTIVATIONS:
    activations.recognise(_define(_name, _activation_forward(getattr(nn, _name))), getattr(nn, _name))
for _name in NORMS:
    run_time.recognise_batch_norm(_define(_name, _norm_forward).forward)
for _name in DROPOUTS:
    _define(_name, _dropout_forward)


def twin(module: nn.Module) -> type[nn.Module] | None:
    """The class that a module may get instead of its stock one; None for every other class, derived ones too."""
    return None if run_time.is_patched(module) else _TWINS.get(type(module))


def is_swapped(module: nn.Module) -> bool:
    return type(module).__module__ == __name__


def swap(module: nn.Module) -> None:
    module.__class__ = _TWINS[type(module)]


def swap_back(module: nn.Module) -> None:
    if is_swapped(module):
        module.__class__ = type(module).__mro__[1]
