"""`to_stock` and `stock_keys`."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from .. import nn as ftnn
from ..fusing.layers.classes import is_unchanged, set_class
from ..fusing.layers.walk import modules, named_modules
from ..fusing.model import restore_all, unfuse
from . import parts, singles
from .calls import Calls
from .state import has_hooks, has_more, has_state_hooks, holds_its_tensors, is_as_made, settings_of

Model = TypeVar("Model", bound=nn.Module)


def to_stock(model: Model, *, inplace: bool = False) -> Model:
    """Turns every module of `fusedtricks.nn` in a model into modules of `torch.nn` that do the same.

    For tools that know stock's layers alone: they fold a BatchNorm, freeze it, quantise or export it. A model of `fuse`
    is unfused. Values, gradients, parameters, buffers, modes and forward hooks stay; dropout draws other random
    numbers.

    - Modules with a counterpart in `torch.nn` get its class: activations, dropout, fractional pooling, and BatchNorm
      without activation. Their keys in the `state_dict` stay.
    - The others become an `nn.Sequential` of their parts, for example BatchNorm, activation and dropout: the keys
      `path.weight` become `path.0.weight`. `stock_keys` maps them. Where a residual is passed to the module, or may
      be (code of the model's classes uses the module's name for more than a call with one argument, or cannot be
      read), it is a subclass of `nn.Sequential` that adds it.
    - In an `nn.Sequential` where enough `nn.Identity` follow, as `to_fused` leaves them, the parts take their places,
      and keys stay; but not where code may look into it.
    - What `torch.nn` has nothing like, such as stochastic depth, becomes a module of plain torch operations.

    Classes that are derived from ours stay. Forwards are read, not run, to find out where residuals are passed.

    Args:
        model: any module.
        inplace: change this model instead of a deep copy. Its modules stay the same objects, the model included.

    Returns:
        The stock model, without modules of exactly our classes.

    Raises:
        TypeError: `model` is not a module.
        ValueError: a module of ours has parametrised or computed parameters or its own forward; or, if it has several
            parts, hooks on its `state_dict` or modules in it. `model` is unchanged.
    """
    check_module(model, "to_stock")
    restore_all(model)
    for name, module in named_modules(model):
        if why := _obstacle(module):
            raise ValueError(f"to_stock(): {name or 'the model'} ({type(module).__name__}) {why}")
    stock = own(model, inplace)
    plan = _Plan(stock)
    for place in plan.unfolded:
        _put(place.sequential, place.position, parts.unfold(place.module))
    for module in plan.others:
        _replace(module, plan.takes_more(module))
    return stock


def stock_keys(model: nn.Module) -> dict[str, str]:
    """The key in `to_stock(model).state_dict()` of each key in `model.state_dict()`.

    Checkpoints go both ways: `{keys[name]: value for name, value in ours.items()}` is for the stock model, and
    `{name: stock[keys[name]] for name in keys}` for ours.

    Args:
        model: a model with modules of ours, for example from `to_fused`.

    Raises:
        TypeError: `model` is not a module.
    """
    check_module(model, "stock_keys")
    restore_all(model)
    plain = unfuse(model)
    keys = {name: name for name in plain.state_dict()}
    split = [module for module in _Plan(plain).others if not singles.is_single(module)]
    for path, module in named_modules(plain, every_name=True):
        prefix = f"{path}." if path else ""
        if module in split and parts.FIRST[type(module)] is not None:
            keys |= {name: f"{prefix}0.{name[len(prefix) :]}" for name in keys if name.startswith(prefix)}
    return keys


def check_module(model: Any, function: str) -> None:
    """TypeError unless `model` is a module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{function}(): argument 'model' must be torch.nn.Module, not {type(model).__name__}")


def own(model: Model, inplace: bool) -> Model:
    """The model to change, unfused."""
    return unfuse(model if inplace else copy.deepcopy(model), inplace=True)


class _Place(NamedTuple):
    """A module whose parts take its place and those of the identities after it."""

    sequential: nn.Module
    position: int
    module: nn.Module


class _Plan:
    """What becomes of the modules of ours in a model."""

    def __init__(self, model: nn.Module) -> None:
        ours = [module for module in modules(model) if singles.is_ours(module)]
        self._calls = Calls(model) if any(_has_choice(module) for module in ours) else None
        self.unfolded = [place for module in modules(model) for place in self._places(module)]
        unfolded = {place.module for place in self.unfolded}
        self.others = [module for module in ours if module not in unfolded]

    def takes_more(self, module: nn.Module) -> bool:
        """Whether more than one argument may be passed to a module that takes more."""
        if not _takes_more(module):
            return False
        return bool(vars(module)["_forward_pre_hooks"]) or not (self._calls and self._calls.takes_one(module))

    def _places(self, sequential: nn.Module) -> Iterator[_Place]:
        if self._calls is None or not is_plain_sequential(sequential) or not self._calls.is_called_whole(sequential):
            return
        children = [*sequential._modules.values()]
        for i, child in enumerate(children):
            if child is None or not self._may_unfold(child):
                continue
            size = parts.length(child)
            after = children[i + 1 : i + size]
            is_whole = size == len(children) and is_numbered(sequential)
            if len(after) == size - 1 and not is_whole and all(self._is_empty(module) for module in after):
                yield _Place(sequential, i, child)

    def _may_unfold(self, module: nn.Module) -> bool:
        if not singles.is_ours(module) or singles.is_single(module) or has_hooks(module):
            return False
        assert self._calls is not None
        stock = parts.FIRST[type(module)]
        names = (*parts.OWN, *settings_of(stock))
        return self._calls.is_unshared(module) and not has_more(module, names)

    def _is_empty(self, module: nn.Module | None) -> bool:
        assert self._calls is not None
        return type(module) is nn.Identity and is_as_made(module) and self._calls.is_unshared(module)


def is_plain_sequential(module: nn.Module) -> bool:
    """Whether a module is an nn.Sequential that runs its members one after another."""
    return type(module) is nn.Sequential and is_unchanged(nn.Sequential) and "forward" not in vars(module)


def is_numbered(sequential: nn.Module) -> bool:
    """Whether a container's members are called "0", "1", …"""
    return list(sequential._modules) == [str(i) for i in range(len(sequential._modules))]


def _has_choice(module: nn.Module) -> bool:
    return not singles.is_single(module) or _takes_more(module)


def _takes_more(module: nn.Module) -> bool:
    if type(module) is ftnn.StochasticDepth:
        return True
    return not singles.is_single(module) and parts.takes_residual(module)


def _put(sequential: nn.Module, position: int, members: list[nn.Module]) -> None:
    names = list(sequential._modules)[position:]
    sequential._modules.update(zip(names, members, strict=False))


def _replace(module: nn.Module, takes_more: bool) -> None:
    if singles.is_single(module):
        singles.to_stock(module, takes_more)
        return
    kind = parts.container(module, takes_more)
    module._modules.update((str(i), part) for i, part in enumerate(parts.split(module)))
    set_class(module, kind)


def _obstacle(module: nn.Module) -> str:
    """Why one of our modules cannot be replaced, else ""."""
    if is_parametrized(module) and singles.is_our_class(type(module).__mro__[1]):
        return "is parametrised: remove its parametrizations first"
    if not singles.is_ours(module):
        return ""
    if "forward" in vars(module):
        return "has a forward of its own on the instance: remove it first"
    if singles.is_single(module):
        return ""
    stock = parts.FIRST[type(module)]
    if has_state_hooks(module):
        return "has hooks on its state_dict, whose keys would change: remove them first"
    if module._modules:
        return "has modules in it, which have no place in its parts: remove them first"
    if not holds_its_tensors(module, stock):
        return "has computed or further parameters or buffers (weight_norm, pruning): remove them first"
    return ""
