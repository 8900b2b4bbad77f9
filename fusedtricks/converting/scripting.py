"""`torch.jit.script` of models with our modules: it compiles stock's computation, with the same parameters and keys.

torch asks each module for one to compile instead, and leaves that in the model. Here it is the module itself, with a
class whose forward TorchScript can compile; when the module is next called, it gets its own class back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.compiler import is_dynamo_compiling

from .. import nn as ftnn
from ..fusing.install import swaps
from ..fusing.layers.classes import set_class
from ..nn.batchnorm_pool import WINDOWS
from . import layers, scripted, singles

_SCRIPTABLE: dict[type[nn.Module], type[nn.Module]] = {}
_OWN: dict[type[nn.Module], type[nn.Module]] = {}


def install() -> None:
    """Gives our classes what TorchScript asks for. Synchronised BatchNorm has none, as stock's."""
    for kind, stock in singles.STOCK.items():
        _define(kind, scripted.FORWARDS.get(kind, stock.forward))
    for kind, plain in singles.PLAIN.items():
        names = [name for name in ("_activated", "_variance", "_product") if hasattr(plain, name)]
        _define(kind, plain.forward, **{name: getattr(plain, name) for name in names})
    _define(layers.StochasticDepthWithArguments, layers.StochasticDepth.forward)
    for stock, twin in swaps.TWINS.items():
        _define(twin, stock.forward)
    for kind in scripted.NORMS:
        constants = ("track_running_stats", "momentum", "eps", "num_features", "affine", "act", "p", *WINDOWS)
        _define(kind, scripted.FORWARDS[kind], normalised=scripted.normalised, __constants__=[*constants])
    for kind in (ftnn.ActDropout, ftnn.LinearActDropout, ftnn.FractionalMaxPool2d, ftnn.FractionalMaxPool3d):
        _define(kind, scripted.FORWARDS[kind])


def _define(kind: type[nn.Module], forward: Callable[..., Any], **others: Any) -> None:
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if is_dynamo_compiling():
            return kind.forward(self, *args, **kwargs)
        restore(self)
        return self(*args, **kwargs)

    def reduce(self: nn.Module, protocol: Any) -> Any:
        restore(self)
        return self.__reduce_ex__(protocol)

    names: dict[str, Any] = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    names["__annotations__"] = {"training": bool}  # without any, TorchScript would read those of our class
    methods = {"forward": forward, "__call__": call, "__reduce_ex__": reduce}
    made = type(kind.__name__, (kind,), {**names, **methods, **others})
    _SCRIPTABLE[kind], _OWN[made] = made, kind
    kind.__prepare_scriptable__ = _scriptable  # type: ignore[attr-defined]


def _scriptable(module: Any) -> nn.Module:
    kind = _SCRIPTABLE.get(type(module))
    if kind is not None and "forward" not in vars(module):
        if isinstance(vars(module).get("act"), str):
            module.act_parameters = singles.act_parameters(module)
        set_class(module, kind)
    return module


def restore(module: nn.Module) -> None:
    """Gives a module its own class back."""
    if type(module) in _OWN:
        vars(module).pop("act_parameters", None)
        set_class(module, _OWN[type(module)])
