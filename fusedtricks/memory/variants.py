"""The variants of a model that `memory_report` compares, as copies."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

NAMES = ("stock", "fused", "recompute")


def variant(model: nn.Module, name: str, on_meta: bool) -> nn.Module:
    """A copy of a model: of stock layers, or fused. None recomputes of its own accord.

    Args:
        model: any model, which may be fused.
        name: one of `NAMES`; "recompute" is fused too.
        on_meta: the copy's parameters and buffers are meta tensors; none is copied.
    """
    from ..converting import to_stock  # both import `recompute`
    from ..fusing import fuse

    own = _copied(model, on_meta)
    return to_stock(own, inplace=True) if name == "stock" else fuse(own, inplace=True, recompute=False)


def check_copyable(model: nn.Module) -> None:
    """ValueError if a module is lazy and has not run yet: its parameters cannot be copied."""
    if any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        raise ValueError(
            "memory_report(): argument 'model' has lazy modules, which cannot be copied: call the model once before"
        )


def _copied(model: nn.Module, on_meta: bool) -> nn.Module:
    memo: dict[int, Any] = {}
    if on_meta:
        memo = {id(tensor): _as_meta(tensor) for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, memo)


def _as_meta(tensor: Tensor) -> Tensor:
    on_meta = tensor.detach().to("meta")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(on_meta, requires_grad=tensor.requires_grad)
    return on_meta.requires_grad_(tensor.requires_grad)
