"""BatchNorm synchronised over processes, with activation and dropout, and the conversion to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional as F
from ..functional._arguments import activation_arguments, check_dropout
from ._tracing import Proxy, traced
from ._variance import GuardsVariance, Lost
from .batchnorm import _BatchNormAct, act_repr, beyond_norm
from .batchnorm_pool import WINDOWS, BatchNormActMaxPool2d


class SyncBatchNormAct(GuardsVariance, nn.SyncBatchNorm):
    """Equivalent to `torch.nn.SyncBatchNorm`, then `+ residual`, the activation, and dropout.

    Arguments: those of `torch.nn.SyncBatchNorm`, and `act`, `act_kwargs`, `p` as in `BatchNormAct1d`. The `state_dict`
    is the same as theirs.

    Raises:
        ValueError: unknown `act`; `p` outside [0, 1] or NaN; in forward, as in `torch.nn.SyncBatchNorm`.
        TypeError: `act_kwargs` that the activation does not take.
    """

    p: float = 0.0  # default for modules pickled before `p` existed

    def __init__(self, *args: Any, act: str = "relu", act_kwargs: Any = None, p: float = 0.0, **kwargs: Any) -> None:
        activation_arguments(act, act_kwargs)
        check_dropout(p, "inverted")
        super().__init__(*args, **kwargs)
        self.act = act
        self.act_kwargs = dict(act_kwargs or {})
        self.p = p

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """dropout(act(sync_batch_norm(input) + residual)); residual has the input's shape and dtype, or is None."""
        if type(input) is not Tensor and isinstance(input, Proxy):
            return traced(self, input, residual)
        z = _as_stock(self).forward(input)
        z = z if residual is None else z + residual
        return F.act_dropout(z, act=self.act, act_kwargs=self.act_kwargs, p=self.p, training=self.training)

    def _beyond_norm(self) -> Lost | None:
        return beyond_norm(self)

    def extra_repr(self) -> str:
        return super().extra_repr() + act_repr(self)


def _as_stock(module: SyncBatchNormAct) -> nn.SyncBatchNorm:
    """The same module, with the same state, as stock's class: its forward may read `running_var`."""
    stock = nn.SyncBatchNorm.__new__(nn.SyncBatchNorm)
    stock.__dict__ = module.__dict__
    return stock


class SyncBatchNormActMaxPool2d(SyncBatchNormAct):
    """Equivalent to `torch.nn.SyncBatchNorm`, then the activation, then `torch.nn.MaxPool2d`, as three steps.

    `convert_sync_batchnorm` converts a `BatchNormActMaxPool2d` to this.

    Args:
        *args: for `SyncBatchNormAct`.
        windows: the arguments of `torch.nn.MaxPool2d` by name.
        **kwargs: for `SyncBatchNormAct`.
    """

    def __init__(self, *args: Any, windows: Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.windows = dict(windows)

    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]
        """max_pool2d(act(sync_batch_norm(input)))."""
        if type(input) is not Tensor and isinstance(input, Proxy):
            return traced(self, input)
        return torch.nn.functional.max_pool2d(super().forward(input), **self.windows)

    def _beyond_norm(self) -> Lost:
        return Lost(f"{type(self).__name__} ({self.act})", "the activation and the pooling")

    def extra_repr(self) -> str:
        return super().extra_repr() + "".join(f", {name}={value}" for name, value in self.windows.items())


def convert_sync_batchnorm(module: nn.Module, process_group: Any = None) -> nn.Module:
    """`torch.nn.SyncBatchNorm.convert_sync_batchnorm` for models with our BatchNorms; keeps activation and dropout.

    Models returned by `fusedtricks.fuse` may be converted with either function.

    Args:
        module: a model or layer; its BatchNorms are replaced in place.
        process_group: the processes to synchronise, or None for all.

    Returns:
        `module`, or its replacement if it is a BatchNorm itself.
    """
    if isinstance(module, _BatchNormAct):
        return _converted(module, process_group)
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return nn.SyncBatchNorm.convert_sync_batchnorm(module, process_group)
    for name, child in module.named_children():
        setattr(module, name, convert_sync_batchnorm(child, process_group))
    return module


def _converted(module: _BatchNormAct, process_group: Any) -> SyncBatchNormAct:
    kind: type[SyncBatchNormAct] = SyncBatchNormAct
    more: dict[str, Any] = {}
    if isinstance(module, BatchNormActMaxPool2d):
        kind, more = SyncBatchNormActMaxPool2d, {"windows": {name: getattr(module, name) for name in WINDOWS}}
    converted = kind(
        module.num_features,
        module.eps,
        module.momentum,
        module.affine,
        module.track_running_stats,
        process_group,
        act=module.act,
        act_kwargs=module.act_kwargs,
        p=module.p,
        **more,
    )
    converted.weight, converted.bias = module.weight, module.bias
    for name, buffer in module.named_buffers(recurse=False):
        setattr(converted, name, buffer)
    return converted.train(module.training)
