"""`to_fused`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TypeVar

from torch import nn

from ..fusing.layers import activations
from ..fusing.layers.classes import is_unchanged
from ..fusing.layers.walk import modules
from . import parts, singles
from .calls import Calls
from .layers import ActivatedMaxima, AddAfterFirst, AddAtEnd
from .state import has_state_hooks, is_as_made
from .to_stock import check_module, is_numbered, is_plain_sequential, own

Model = TypeVar("Model", bound=nn.Module)


def to_fused(model: Model, *, inplace: bool = False) -> Model:
    """Turns stock layers of a model into modules of `fusedtricks.nn`: the inverse of `to_stock`.

    `fuse` finds more, and leaves a model's modules and keys as they are; this gives modules of ours.

    - BatchNorm, activations, dropout, fractional pooling, and what `to_stock` made of ours, one for one. Keys stay.
    - In an `nn.Sequential`, BatchNorm and an activation, or a linear layer, an activation and dropout. The first of
      them becomes our module, the others `nn.Identity`. Keys stay.
    - An `nn.Sequential` that has nothing else than such neighbours, or than BatchNorm, an activation, and dropout or
      `MaxPool2d`; an activation and dropout; or fractional pooling and an activation, becomes our module itself:
      `path.0.weight` becomes `path.weight`, and `stock_keys` of the result maps them back.

    Layers of exactly stock's classes only. Neighbours stay apart if one of them has hooks or attributes of its own, has
    another place in the model, or is in another mode; and if code of the model's classes may look into the container:
    its source uses the container's name for more than a call (`self.layers[0]`, `for layer in self.layers`), or cannot
    be read. Code elsewhere, such as a script's, is not looked at. Layers that would keep their result for backward stay
    stock where a forward changes that result in place, or may, because it cannot be read.

    Args:
        model: any module. What `fuse` did to it is undone.
        inplace: change this model instead of a deep copy. Its modules stay the same objects, but for those whose place
            `nn.Identity` takes or whose container becomes our module; parameters and buffers always do.

    Returns:
        The model with our modules; dropout draws other random numbers than stock's.

    Raises:
        TypeError: `model` is not a module.
    """
    check_module(model, "to_fused")
    fused = own(model, inplace)
    calls = Calls(fused)
    runs = [run for module in modules(fused) for run in _runs(module, calls)]
    taken = {part for run in runs for part in run.parts}
    alone = [module for module in modules(fused) if module not in taken and _may_replace(module, calls)]
    for run in runs:
        _join(run)
    for module in alone:
        singles.to_fused(module)
    return fused


class _Run(NamedTuple):
    """Neighbours in a container that one of our modules does together."""

    sequential: nn.Module
    position: int
    parts: list[nn.Module]
    found: parts.Joined


def _runs(sequential: nn.Module, calls: Calls) -> Iterator[_Run]:
    is_plain = is_plain_sequential(sequential)
    if not is_plain and type(sequential) not in (AddAfterFirst, AddAtEnd, ActivatedMaxima):
        return
    if is_plain and not calls.is_called_whole(sequential):
        return
    children = [*sequential._modules.values()]
    position = 0
    while position < len(children):
        found = _found(sequential, children[position:], calls)
        if found and (is_plain or (parts.fits(sequential, found) and _is_whole(sequential, found))):
            yield _Run(sequential, position, children[position : position + found.length], found)  # type: ignore[arg-type]
        position += found.length if found else 1


def _found(sequential: nn.Module, members: list[nn.Module | None], calls: Calls) -> parts.Joined | None:
    following: list[nn.Module] = []
    for member in members[:3]:
        if member is None or not _may_join(member, sequential, calls):
            break
        following.append(member)
    found = parts.joined(following)
    if found is None or not _is_whole(sequential, found):
        found = parts.joined_inside(following)
    if found is None or not parts.is_exposed(found):
        return found
    return None if calls.is_changed_later(following[found.length - 1]) else found


def _may_join(member: nn.Module, sequential: nn.Module, calls: Calls) -> bool:
    """Whether nothing but the forward of its class, which is stock's, happens in a member."""
    if not is_unchanged(type(member)) or not calls.is_unshared(member):
        return False
    return member.training == sequential.training and is_as_made(member)


def _is_whole(sequential: nn.Module, found: parts.Joined) -> bool:
    """Whether the container itself becomes our module."""
    is_all = found.length == len(sequential._modules) and is_numbered(sequential)
    return is_all and not has_state_hooks(sequential)


def _join(run: _Run) -> None:
    names = list(run.sequential._modules)
    first = run.parts[0]
    if _is_whole(run.sequential, run.found):
        run.sequential._modules.clear()
        parts.join(first, run.found, run.sequential)
        return
    parts.join(first, run.found)
    emptied = [nn.Identity().train(run.sequential.training) for _ in run.parts[1:]]
    run.sequential._modules.update(zip(names[run.position + 1 :], emptied, strict=False))


def _may_replace(module: nn.Module, calls: Calls) -> bool:
    if not singles.is_known(module):
        return False
    act = activations.of_module(module)
    if act is None or getattr(module, "inplace", False) or not activations.keeps_result_unlike_stock(*act):
        return True
    return not calls.is_changed_later(module)
