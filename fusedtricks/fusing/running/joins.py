"""What the rewritten graphs call for concatenations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ... import functional as F


def cat(tensors: list[Tensor] | tuple[Tensor, ...], dim: Any = 0, **others: Any) -> Tensor:
    """`torch.cat`, with all its ways to give arguments; ours where the result may be recomputed."""
    return torch.cat(tensors, dim, **others) if others else F.cat(tensors, dim)
