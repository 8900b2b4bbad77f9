"""Functions for layers that draw random numbers: ours if there are kernels for the tensor, else stock's.

Ours draw different random numbers than stock's; for the same mask or pooling regions the values are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
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


def _library(input: Any, *dims: int) -> Any:
    """Our functions or stock's, depending on the input. Stock takes other `dims` than those given, because it warns."""
    takes = members.is_ours_alone(input) and are_ours() and (not dims or input.dim() in dims)
    return F if takes else stock


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """`F.dropout`."""
    return _library(input).dropout(input, p, training, inplace)


def drop(z: Tensor, member: members.Dropout) -> Tensor:
    """Applies a chain's dropout on its own."""
    if member is None:
        return z
    return member(z) if isinstance(member, nn.Module) else dropout(z, *member)


def dropout1d(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """`F.dropout1d`."""
    return _library(input, 2, 3).dropout1d(input, p, training, inplace)


def dropout2d(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """`F.dropout2d`."""
    return _library(input, 4).dropout2d(input, p, training, inplace)


def dropout3d(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """`F.dropout3d`."""
    return _library(input, 4, 5).dropout3d(input, p, training, inplace)


def alpha_dropout(input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False) -> Tensor:
    """`F.alpha_dropout`."""
    return _library(input).alpha_dropout(input, p, training, inplace)


def feature_alpha_dropout(input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False) -> Tensor:
    """`F.feature_alpha_dropout`."""
    library = _library(input, *range(2, 9))
    return library.feature_alpha_dropout(input, p, training, inplace)


def fractional_max_pool2d(
    input: Tensor,
    kernel_size: Any,
    output_size: Any = None,
    output_ratio: Any = None,
    return_indices: bool = False,
    _random_samples: Tensor | None = None,
) -> Any:
    """`F.fractional_max_pool2d`; its regions are random in evaluation too."""
    sizes = (kernel_size, output_size, output_ratio)
    return _library(input).fractional_max_pool2d(input, *sizes, return_indices, _random_samples)


def fractional_max_pool3d(
    input: Tensor,
    kernel_size: Any,
    output_size: Any = None,
    output_ratio: Any = None,
    return_indices: bool = False,
    _random_samples: Tensor | None = None,
) -> Any:
    """`F.fractional_max_pool3d`; its regions are random in evaluation too."""
    sizes = (kernel_size, output_size, output_ratio)
    return _library(input).fractional_max_pool3d(input, *sizes, return_indices, _random_samples)


OURS = {
    getattr(stock, function.__name__): function
    for function in (
        *(dropout, dropout1d, dropout2d, dropout3d, alpha_dropout, feature_alpha_dropout),
        *(fractional_max_pool2d, fractional_max_pool3d),
    )
}
"""Our functions, keyed by the function of `torch.nn.functional`."""
