"""Functions for layers that draw random numbers: ours if there are kernels for the tensor, else stock's.

Ours draw different random numbers than stock's; for the same mask or pooling regions the values are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from ... import functional as F
from ..layers import members

_stock_masks: ContextVar[bool] = ContextVar("stock_masks", default=False)
stock = torch.nn.functional


@contextmanager
def stock_dropout() -> Iterator[None]:
    """Context manager: layers draw stock's random numbers, so that a model can be compared with a stock one."""
    token = _stock_masks.set(True)
    try:
        yield
    finally:
        _stock_masks.reset(token)


def are_ours() -> bool:
    """Whether masks are drawn from our random stream."""
    return torch.compiler.is_compiling() or not _stock_masks.get()


def _library(input: Any) -> Any:
    """Our functions or stock's, depending on the input."""
    return F if members.is_ours_alone(input) and are_ours() else stock


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """`F.dropout`."""
    return _library(input).dropout(input, p, training, inplace)


def drop(z: Tensor, member: members.Dropout) -> Tensor:
    """Applies a chain's dropout on its own."""
    if member is None:
        return z
    return member(z) if isinstance(member, nn.Module) else dropout(z, *member)


def _ours_or_stock(name: str) -> Callable[..., Any]:
    """A function of `torch.nn.functional`, by our kernels where there are any."""

    def run(input: Tensor, *arguments: Any, **keywords: Any) -> Any:
        return getattr(_library(input), name)(input, *arguments, **keywords)

    run.__name__, run.__doc__ = name, f"`F.{name}`."
    return run


dropout1d = _ours_or_stock("dropout1d")
dropout2d = _ours_or_stock("dropout2d")
dropout3d = _ours_or_stock("dropout3d")
alpha_dropout = _ours_or_stock("alpha_dropout")
feature_alpha_dropout = _ours_or_stock("feature_alpha_dropout")
fractional_max_pool2d = _ours_or_stock("fractional_max_pool2d")  # their regions are random in evaluation too
fractional_max_pool3d = _ours_or_stock("fractional_max_pool3d")

OURS = {
    getattr(stock, function.__name__): function
    for function in (
        *(dropout, dropout1d, dropout2d, dropout3d, alpha_dropout, feature_alpha_dropout),
        *(fractional_max_pool2d, fractional_max_pool3d),
    )
}
"""Our functions, keyed by the function of `torch.nn.functional`."""
