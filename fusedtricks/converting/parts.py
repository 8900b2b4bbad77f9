"""What our modules consist of: a stock layer with the state, then layers without any, as in an `nn.Sequential`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .. import nn as ftnn
from ..functional import ACTIVATIONS
from ..fusing.layers import activations
from ..fusing.layers.classes import set_class
from ..nn.batchnorm_pool import WINDOWS
from ..stock import activation_layer
from .layers import ActivatedMaxima, AddAfterFirst, AddAtEnd
from .state import bare, hand_over, settings_of, share

_NORMS: dict[type[nn.Module], type[nn.Module]] = {
    ftnn.BatchNormAct1d: nn.BatchNorm1d,
    ftnn.BatchNormAct2d: nn.BatchNorm2d,
    ftnn.BatchNormAct3d: nn.BatchNorm3d,
    ftnn.BatchNormReLU1d: nn.BatchNorm1d,
    ftnn.BatchNormReLU2d: nn.BatchNorm2d,
    ftnn.BatchNormReLU3d: nn.BatchNorm3d,
    ftnn.BatchNormActMaxPool2d: nn.BatchNorm2d,
    ftnn.SyncBatchNormAct: nn.SyncBatchNorm,
    ftnn.SyncBatchNormActMaxPool2d: nn.SyncBatchNorm,
}
_POOLS: dict[type[nn.Module], type[nn.Module]] = {
    ftnn.FractionalMaxPool2d: nn.FractionalMaxPool2d,
    ftnn.FractionalMaxPool3d: nn.FractionalMaxPool3d,
}
FIRST: dict[type[nn.Module], type[nn.Module] | None] = {
    **_NORMS,
    **_POOLS,
    ftnn.LinearActDropout: nn.Linear,
    ftnn.ActDropout: None,
}
"""The stock class of the first part, which has the module's state; None if there is no state."""

OWN = ("act", "act_kwargs", "p", "windows", *WINDOWS)
"""What our modules have besides."""

_OURS = {stock: ours for ours, stock in _POOLS.items()}
_WITH_ACTIVATION: dict[type[nn.Module], tuple[type[nn.Module], type[nn.Module]]] = {
    nn.BatchNorm1d: (ftnn.BatchNormAct1d, ftnn.BatchNormReLU1d),
    nn.BatchNorm2d: (ftnn.BatchNormAct2d, ftnn.BatchNormReLU2d),
    nn.BatchNorm3d: (ftnn.BatchNormAct3d, ftnn.BatchNormReLU3d),
    nn.SyncBatchNorm: (ftnn.SyncBatchNormAct, ftnn.SyncBatchNormAct),
}
_WITH_POOL: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm2d: ftnn.BatchNormActMaxPool2d,
    nn.SyncBatchNorm: ftnn.SyncBatchNormActMaxPool2d,
}


def is_split(module: nn.Module) -> bool:
    """Whether a module of one of our classes in `FIRST` has more than one part."""
    kind, own = type(module), vars(module)
    if kind in _POOLS or (kind in _NORMS and not is_pooled(module)):
        return bool(own.get("act", "identity") != "identity" or own.get("p", 0))
    return True


def is_pooled(module: nn.Module) -> bool:
    return isinstance(module, (ftnn.BatchNormActMaxPool2d, ftnn.SyncBatchNormActMaxPool2d))


def takes_residual(module: nn.Module) -> bool:
    return type(module) not in _POOLS and not is_pooled(module)


def length(module: nn.Module) -> int:
    """The number of parts of a module that is split."""
    return len(_rest(module)) + (FIRST[type(module)] is not None)


def split(module: Any) -> list[nn.Module]:
    """The parts of a module; the first takes its parameters, buffers and settings over."""
    parts = _rest(module)
    stock = FIRST[type(module)]
    if stock is not None:
        first = bare(stock, module.training)
        hand_over(module, first, settings_of(stock))
        parts = [first, *parts]
    for name in OWN:
        vars(module).pop(name, None)
    return [part.train(module.training) for part in parts]


def _rest(module: Any) -> list[nn.Module]:
    rest = [activation_layer(module.act, **module.act_kwargs)]
    if is_pooled(module):
        windows = {name: getattr(module, name) for name in WINDOWS} if hasattr(module, "stride") else module.windows
        return [*rest, nn.MaxPool2d(**windows)]
    if isinstance(module, (ftnn.ActDropout, ftnn.LinearActDropout)) or (type(module) in _NORMS and module.p):
        rest.append(nn.Dropout(module.p))
    return rest


def container(module: Any, takes_more: bool) -> type[nn.Module]:
    """The class of the container of a module's parts."""
    if type(module) in _POOLS:
        return ActivatedMaxima if module.return_indices else nn.Sequential
    if not takes_residual(module) or not takes_more:
        return nn.Sequential
    return AddAfterFirst if type(module) in _NORMS else AddAtEnd


class Joined(NamedTuple):
    """One of our modules that does what several stock layers do."""

    length: int
    kind: type[nn.Module]
    settings: dict[str, Any]


def joined(parts: list[nn.Module]) -> Joined | None:
    """Our module for as many as possible of these layers, from the first; None if there is none for two or more."""
    kinds = tuple(type(part) for part in parts[:3])
    if len(parts) < 2:
        return None
    first, second, third = parts[0], parts[1], parts[2] if len(parts) > 2 else None
    if kinds[0] in _WITH_ACTIVATION and (act := _activation(second)):
        return _joined_norm(first, act, third)
    if kinds[0] is nn.Linear and (act := _activation(second)) and (drop := _dropout(third)):
        return Joined(3, ftnn.LinearActDropout, act | drop)
    if (act := _activation(first)) and (drop := _dropout(second)) and not _writes(first) and not _writes(second):
        return Joined(2, ftnn.ActDropout, act | drop)
    if kinds[0] in _OURS and (act := _activation(second)) and activations.never_decreases(**_named(act)):
        return Joined(2, _OURS[kinds[0]], act) if act["act"] != "identity" else None
    return None


def joined_inside(parts: list[nn.Module]) -> Joined | None:
    """The same in a longer container, where others may look at what the members return, and change their modes.

    So dropout, pooling and what follows them stay apart, but for dropout that a linear layer begins: that has no mode.
    """
    if parts and type(parts[0]) is nn.Linear:
        return joined(parts)
    found = joined(parts[:2])
    return found if found is not None and issubclass(found.kind, _BatchNorm) else None


def _writes(part: Any) -> bool:
    """Whether an activation or dropout writes to its input: that of a chain is somebody else's."""
    return bool(getattr(part, "inplace", False))


def _joined_norm(norm: nn.Module, act: dict[str, Any], third: Any) -> Joined | None:
    general, relu = _WITH_ACTIVATION[type(norm)]
    kind = relu if act["act"] == "relu" else general
    if type(norm) in _WITH_POOL and type(third) is nn.MaxPool2d and not third.return_indices:
        windows: dict[str, Any] = {name: getattr(third, name) for name in WINDOWS}
        more = {"windows": windows} if isinstance(norm, nn.SyncBatchNorm) else windows
        return Joined(3, _WITH_POOL[type(norm)], {**act, "p": 0.0, **more})
    drop = _dropout(third)
    if drop and drop["p"] > 0:
        return Joined(3, kind, act | drop)
    return Joined(2, kind, act | {"p": 0.0}) if act["act"] != "identity" else None


def _activation(part: Any) -> dict[str, Any] | None:
    """`act` and `act_kwargs` of stock's activation, or Identity's."""
    if type(part) is nn.Identity:
        return {"act": "identity", "act_kwargs": {}}
    found = activations.of_module(part) if type(part).__module__ == nn.ReLU.__module__ else None
    if found is None:
        return None
    defaults = ACTIVATIONS[found.name]
    given = {name: value for name, value in found.parameters.items() if value != defaults[name]}
    return {"act": found.name, "act_kwargs": given}


def _named(act: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": act["act"], "parameters": act["act_kwargs"]}


def _dropout(part: Any) -> dict[str, Any] | None:
    return {"p": part.p} if type(part) is nn.Dropout and 0 <= part.p <= 1 else None


def fits(made: nn.Module, found: Joined) -> bool:
    """Whether a container of ours does with its members what the module does."""
    if isinstance(made, ActivatedMaxima):
        return found.kind in _POOLS
    if isinstance(made, AddAfterFirst):
        return found.kind in _NORMS and "kernel_size" not in found.settings and "windows" not in found.settings
    return found.kind in (ftnn.ActDropout, ftnn.LinearActDropout)


def is_exposed(found: Joined) -> bool:
    """Whether our module, unlike its parts, keeps its result for backward: it must not be changed in place."""
    is_norm = issubclass(found.kind, _BatchNorm)
    return not is_norm and activations.keeps_result(found.settings["act"], found.settings["act_kwargs"])


def join(first: nn.Module, found: Joined, into: nn.Module | None = None) -> None:
    """Makes the first part our module; or makes `into` that, with the first part's state, which it keeps too."""
    ours = first if into is None else into
    if into is not None and FIRST[found.kind] is not None:
        share(first, into, settings_of(type(first)))
    vars(ours).update(found.settings)
    set_class(ours, found.kind)


def unfold(module: nn.Module) -> list[nn.Module]:
    """Makes a module its own first part; returns all its parts."""
    first, *rest = split(module)
    hand_over(first, module, settings_of(type(first)))
    set_class(module, type(first))
    return [module, *rest]
