"""Batch normalisation over all processes with an activation and dropout, and the conversion to it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .. import functional as F
from ..functional._calls import activation_arguments
from ..functional._dropout import check_dropout
from .batchnorm import _BatchNormAct, act_repr


class SyncBatchNormAct(nn.SyncBatchNorm):
    """Equivalent to `torch.nn.SyncBatchNorm`, then `+ residual`, the activation, and dropout: synchronised passes.

    Arguments: those of `torch.nn.SyncBatchNorm`, and `act`, `act_kwargs`, `p` as of `BatchNormAct1d`. The `state_dict`
    is theirs, too.

    Raises:
        ValueError: unknown `act`; `p` outside [0, 1] or NaN; on forward, as `torch.nn.SyncBatchNorm`.
        TypeError: `act_kwargs` that the activation does not take.
    """

    p: float = 0.0  # of modules that were saved before they had it

    def __init__(self, *args: Any, act: str = "relu", act_kwargs: Any = None, p: float = 0.0, **kwargs: Any) -> None:
        activation_arguments(act, act_kwargs)
        check_dropout(p, "inverted")
        super().__init__(*args, **kwargs)
        self.act = act
        self.act_kwargs = dict(act_kwargs or {})
        self.p = p

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """dropout(act(sync_batch_norm(input) + residual)); residual of the input's shape and dtype, or None."""
        z = super().forward(input)
        y = F.activation(z if residual is None else z + residual, self.act, **self.act_kwargs)
        return F.dropout(y, self.p, self.training)

    def extra_repr(self) -> str:
        return super().extra_repr() + act_repr(self)


def convert_sync_batchnorm(module: nn.Module, process_group: Any = None) -> nn.Module:
    """`torch.nn.SyncBatchNorm.convert_sync_batchnorm` for models with our BatchNorms, which keep what follows.

    Models that `fusedtricks.fuse` returned may be converted by either.

    Args:
        module: a model or a layer; its BatchNorms are replaced in it.
        process_group: of the processes to synchronise, or None for all.

    Returns:
        `module`, or its replacement where it is a BatchNorm itself.
    """
    if isinstance(module, _BatchNormAct):
        return _converted(module, process_group)
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return nn.SyncBatchNorm.convert_sync_batchnorm(module, process_group)
    for name, child in module.named_children():
        setattr(module, name, convert_sync_batchnorm(child, process_group))
    return module


def _converted(module: _BatchNormAct, process_group: Any) -> SyncBatchNormAct:
    converted = SyncBatchNormAct(
        module.num_features,
        module.eps,
        module.momentum,
        module.affine,
        module.track_running_stats,
        process_group,
        act=module.act,
        act_kwargs=module.act_kwargs,
        p=module.p,
    )
    converted.weight, converted.bias = module.weight, module.bias
    for name, buffer in module.named_buffers(recurse=False):
        setattr(converted, name, buffer)
    return converted.train(module.training)
