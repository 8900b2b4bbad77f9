"""Concatenation."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _C
from ._route import is_dynamo_compiling


def cat(tensors: list[Tensor] | tuple[Tensor, ...], dim: int = 0) -> Tensor:
    r"""Equivalent to `torch.cat(tensors, dim)`.

    It is `torch.cat`, except within `fusedtricks.recompute()`: there the result is not kept for the backward by those
    who need it, but joined again from the tensors, which are kept instead (or recomputed themselves). So a densely
    connected block (Huang et al., 2017), in which every layer concatenates all before it, keeps each output once:
    memory grows linearly with the number of layers, not with its square (Pleiss et al., 2017).

    Args:
        tensors: a list or tuple of tensors of one dtype, of the same shape but for `dim`.
        dim: the dimension to join them in.

    Returns:
        A new tensor, in `torch.cat`'s memory format.

    Raises:
        RuntimeError, IndexError, TypeError: those of `torch.cat`. Within `recompute()` the backward raises RuntimeError
            if one of the tensors was changed in place after the call.
    """
    y = None if is_dynamo_compiling() else _C.cat(tensors, dim)
    return torch.cat(tensors, dim) if y is None else y
