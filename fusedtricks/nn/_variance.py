"""The attribute `running_var` of our BatchNorms: a tensor that refuses to be used for the normalisation alone.

Tools that fold or convert a BatchNorm compute `running_var + eps` themselves, or give the buffer to another module.
They know nothing of what follows the normalisation, so it would be lost without a word.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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


class RunningVariance(Tensor):
    """An alias of a module's buffer. Functions get the buffer itself, but for those that would lose something.

    `detach()` and `data` are plain tensors.
    """

    _buffer: Tensor
    _lost: str

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _SUMS and any(isinstance(value, (int, float)) for value in (*args, *kwargs.values())):
            raise RuntimeError(_sentence("running_var + eps", _first(args, kwargs)._lost))
        if func in _NORMS:
            raise RuntimeError(_sentence("batch_norm with another module's running_var", _first(args, kwargs)._lost))
        result = func(*tree_map_only(cls, plain, args), **tree_map_only(cls, plain, kwargs))
        return guarded(result, args[0]._lost) if func in _COPIES and isinstance(args[0], cls) else result


def _sentence(what: str, lost: str) -> str:
    return (
        f"{what}: this would drop {lost}. Convert the model with fusedtricks.to_stock(model) before folding its "
        "BatchNorms, and with fusedtricks.nn.convert_sync_batchnorm to synchronised ones; running_var.detach() is the "
        "plain tensor."
    )


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> RunningVariance:
    return next(value for value in (*args, *kwargs.values()) if isinstance(value, RunningVariance))


def guarded(buffer: Tensor, lost: str) -> Tensor:
    """A tensor that refuses what would lose `lost`. Of subclasses of Tensor, such as fake tensors, there is none."""
    if type(buffer) is not Tensor:
        return buffer
    alias: Any = Tensor._make_subclass(RunningVariance, buffer)
    alias._buffer, alias._lost = buffer, lost
    return alias


def plain(value: Any) -> Any:
    """The buffer of a guarded tensor; anything else itself."""
    return value._buffer if type(value) is RunningVariance else value


class GuardsVariance(nn.Module):
    """Guards `running_var` of a BatchNorm. Must come before the stock module in the list of base classes."""

    def _beyond_norm(self) -> str:
        """Describes what would be lost if a stock BatchNorm replaced this module; "" for nothing."""
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
        lost = self._beyond_norm() if "act" in own else ""  # else stock's __init__ is running
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
