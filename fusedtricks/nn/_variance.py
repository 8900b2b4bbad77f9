"""The attribute `running_var` of our BatchNorms: a tensor that refuses to be used for the normalisation alone.

Tools that fold or convert a BatchNorm compute `running_var + eps` themselves, or give the buffer to another module.
They know nothing of what follows the normalisation, so it would be lost without a word. Tools that copy statistics
cannot be told from code that reads them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

_SUMS = {Tensor.add, Tensor.__add__, Tensor.__radd__, torch.add}
_NORMS = {
    nn.functional.batch_norm,
    torch.batch_norm,
    torch.native_batch_norm,
    torch.batch_norm_elemt,
    torch.batch_norm_gather_stats,
    torch.batch_norm_gather_stats_with_counts,
    torch.batch_norm_update_stats,
}
_COPIES = {
    *(Tensor.to, Tensor.cpu, Tensor.cuda, Tensor.type, Tensor.clone, Tensor.__deepcopy__, torch.clone),
    *(Tensor.half, Tensor.bfloat16, Tensor.float, Tensor.double, torch.empty_like),
}
"""Whose results are guarded too: `module.to(device)` and copies of a module keep the guard."""


_LARGEST_EPS = 0.1


class Lost(NamedTuple):
    """What would be lost if a stock BatchNorm replaced a module."""

    owner: str
    what: str


class RunningVariance(Tensor):
    """An alias of a module's buffer. Functions get the buffer itself, but for those that would lose something.

    `detach()` and `data` are plain tensors.
    """

    _buffer: Tensor
    _lost: Lost

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _SUMS and any(_may_be_eps(value) for value in (*args[:2], kwargs.get("other"))):
            raise RuntimeError(_folding(_first(args, kwargs)._lost))
        if func in _NORMS or func is Tensor.to_mkldnn:
            raise RuntimeError(_converting(func.__name__, _first(args, kwargs)._lost))
        result = func(*tree_map_only(cls, plain, args), **tree_map_only(cls, plain, kwargs))
        return guarded(result, args[0]._lost) if func in _COPIES and isinstance(args[0], cls) else result


def _may_be_eps(value: Any) -> bool:
    return isinstance(value, (int, float)) and 0 < value <= _LARGEST_EPS


def _folding(lost: Lost) -> str:
    return (
        f"running_var of {lost.owner} + a number looks like folding, which would drop {lost.what}. To fold or convert, "
        "call fusedtricks.to_stock(model) first; only to read it, use running_var.detach()."
    )


def _converting(function: str, lost: Lost) -> str:
    return (
        f"{function} with running_var of {lost.owner} looks like a converted layer, which would drop {lost.what}. To "
        "convert, call fusedtricks.to_stock(model) first, or fusedtricks.nn.convert_sync_batchnorm(model) for "
        "synchronised layers; only to read it, use running_var.detach()."
    )


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> RunningVariance:
    return next(value for value in (*args, *kwargs.values()) if isinstance(value, RunningVariance))


def guarded(buffer: Tensor, lost: Lost) -> Tensor:
    """A tensor that refuses what would lose `lost`. Of subclasses of Tensor, such as fake tensors, there is none."""
    if type(buffer) is not Tensor:
        return buffer
    alias: Any = Tensor._make_subclass(RunningVariance, buffer)
    alias._buffer, alias._lost = buffer, lost
    return alias


def plain(value: Any) -> Any:
    """The buffer of a guarded tensor; anything else itself."""
    return value._buffer if type(value) is RunningVariance else value


_OURS = __name__[: __name__.rindex(".") + 1]


class GuardsVariance(nn.Module):
    """Guards `running_var` of a BatchNorm. Must come before the stock module in the list of base classes."""

    def _beyond_norm(self) -> Lost | None:
        """What would be lost if a stock BatchNorm replaced this module."""
        raise NotImplementedError

    __jit_unused_properties__ = ("running_var",)

    @property
    def running_var(self) -> Any:
        """The buffer, which says so where it is used for a BatchNorm alone; None if statistics are not tracked."""
        own = self.__dict__
        if "running_var" in own["_buffers"]:
            buffer = own["_buffers"]["running_var"]
        elif "running_var" in own:  # computed, for example by a hook
            buffer = own["running_var"]
        else:
            raise AttributeError("running_var")
        if buffer is None or torch.compiler.is_dynamo_compiling():
            return buffer
        if not getattr(type(self).forward, "__module__", "").startswith(_OURS):  # another forward knows what follows
            return buffer
        lost = self._beyond_norm() if "act" in own else None  # else stock's __init__ is running
        return guarded(buffer, lost) if lost else buffer

    @running_var.setter
    def running_var(self, value: Any) -> None:
        self.__dict__["running_var"] = value  # nn.Module calls this where there is no buffer of that name

    @running_var.deleter
    def running_var(self) -> None:
        if self.__dict__.pop("running_var", self) is self:
            raise AttributeError("running_var")

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, plain(value))
