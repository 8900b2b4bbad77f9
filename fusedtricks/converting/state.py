"""Moves what a module is made of to another module, and knows what else there may be on it."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..fusing.layers.activations import MODULE_NAMES

_SAMPLES = (
    *(nn.BatchNorm1d(1), nn.BatchNorm2d(1), nn.BatchNorm3d(1), nn.SyncBatchNorm(1)),
    *(nn.Linear(1, 1, device="meta"), nn.MaxPool2d(1), nn.FractionalMaxPool2d(1, 1), nn.FractionalMaxPool3d(1, 1)),
    *(getattr(nn, name)() for name in (*MODULE_NAMES, "Dropout", "Identity")),
)
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_STATE_HOOKS = (
    *("_state_dict_hooks", "_state_dict_pre_hooks"),
    *("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
)
_HOOKS = (
    *("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"),
    *_STATE_HOOKS,
)


_SETTINGS: dict[type[nn.Module] | None, tuple[str, ...]] = {
    type(sample): tuple(name for name in vars(sample) if name not in _OF_EVERY_MODULE) for sample in _SAMPLES
}
_TENSORS: dict[type[nn.Module] | None, set[str]] = {
    type(sample): {*sample._parameters, *sample._buffers} for sample in _SAMPLES
}


def settings_of(stock: type[nn.Module] | None) -> tuple[str, ...]:
    """The attributes that modules of a stock class have besides those of every module; none for None."""
    return _SETTINGS.get(stock, ())


def bare(kind: type[nn.Module], training: bool) -> Any:
    """A module of a class without anything of the class's own."""
    module = kind.__new__(kind)
    nn.Module.__init__(module)
    module.training = training
    return module


def hand_over(giver: Any, taker: Any, settings: tuple[str, ...]) -> None:
    """Moves parameters, buffers and settings: the same objects."""
    for name in ("_parameters", "_buffers"):
        vars(taker)[name] = vars(giver)[name]
        vars(giver)[name] = type(vars(giver)[name])()
    taker._non_persistent_buffers_set = giver._non_persistent_buffers_set
    giver._non_persistent_buffers_set = set()
    for name in settings:
        if name in vars(giver):
            vars(taker)[name] = vars(giver).pop(name)


def share(giver: Any, taker: Any, settings: tuple[str, ...]) -> None:
    """The same, but the giver keeps all of it, so that who holds it sees the same tensors."""
    for name in ("_parameters", "_buffers", "_non_persistent_buffers_set"):
        vars(taker)[name] = vars(giver)[name]
    vars(taker).update({name: vars(giver)[name] for name in settings if name in vars(giver)})


def is_as_made(module: nn.Module) -> bool:
    """Whether a module of a stock class has only what its class gives it: no hooks, no attributes, all tensors."""
    kind = type(module)
    if has_more(module, settings_of(kind)) or has_hooks(module):
        return False
    return holds_its_tensors(module, kind) and not module._modules


def has_more(module: nn.Module, names: tuple[str, ...]) -> bool:
    """Whether a module has other attributes than these and every module's; private ones are marks of libraries."""
    return any(not name.startswith("_") for name in {*vars(module)} - _OF_EVERY_MODULE - {*names})


def has_hooks(module: nn.Module) -> bool:
    return any(vars(module).get(name) for name in _HOOKS)


def has_state_hooks(module: nn.Module) -> bool:
    """Whether something that knows the module's keys runs when its state is saved or loaded."""
    return any(vars(module).get(name) for name in _STATE_HOOKS)


def holds_its_tensors(module: nn.Module, stock: type[nn.Module] | None) -> bool:
    """Whether all tensors of the stock class are parameters and buffers here, and there are no others."""
    return {*module._parameters, *module._buffers} == _TENSORS.get(stock, set())
