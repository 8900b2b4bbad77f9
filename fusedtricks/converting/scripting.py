"""What TorchScript compiles of our modules: stock's computation, with the same parameters and keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .. import nn as ftnn
from ..fusing.install import swaps
from ..fusing.install.scriptable import ACT_PARAMETERS, restore, scriptable_class
from ..fusing.layers.classes import set_class
from ..nn.batchnorm_pool import WINDOWS
from . import layers, scripted, singles

_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}
_MEMBERS: dict[type[nn.Module], dict[str, Any]] = {}
_DERIVED = "_fusedtricks_scriptable"
"""The attribute of a user's class, derived from one of ours, with the class for TorchScript."""


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
        constants = [*_BatchNorm.__constants__, *(WINDOWS if kind is ftnn.BatchNormActMaxPool2d else ())]
        _define(kind, scripted.FORWARDS[kind], normalised=scripted.normalised, __constants__=constants)
    for kind in (ftnn.ActDropout, ftnn.LinearActDropout, ftnn.FractionalMaxPool2d, ftnn.FractionalMaxPool3d):
        _define(kind, scripted.FORWARDS[kind])


def _define(kind: type[nn.Module], forward: Callable[..., Any], **others: Any) -> None:
    annotations = {"training": bool}  # without any, TorchScript would read those of our class
    _MEMBERS[kind] = {"forward": forward, "__annotations__": annotations, **others}
    _CLASSES[kind] = scriptable_class(kind, kind, **_MEMBERS[kind])
    kind.__prepare_scriptable__ = _scriptable  # type: ignore[attr-defined]


def _scriptable(module: Any) -> nn.Module:
    restore(module)  # it may have been compiled with other settings
    kind = _class_for(type(module))
    if kind is not None and "forward" not in vars(module):
        if isinstance(vars(module).get("act"), str):
            setattr(module, ACT_PARAMETERS, singles.act_parameters(module))
        set_class(module, kind)
    return module


def _class_for(kind: type[nn.Module]) -> type[nn.Module] | None:
    if kind in _CLASSES or _DERIVED in vars(kind):
        return _CLASSES.get(kind) or vars(kind)[_DERIVED]
    ours = next((base for base in kind.__mro__ if base in _CLASSES), None)
    if ours is None or kind.forward is not ours.forward:
        return None
    setattr(kind, _DERIVED, scriptable_class(kind, kind, **_MEMBERS[ours]))
    return kind.__dict__[_DERIVED]
