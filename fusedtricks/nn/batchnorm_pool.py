"""Batch normalisation, an activation and max-pooling in one module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .. import functional as F
from ..functional._batch_norm_act_max_pool2d import Pair, pool_arguments
from ._tracing import Proxy, traced
from ._variance import Lost
from .batchnorm import _BatchNormAct, norm_state

WINDOWS = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
"""The arguments of `torch.nn.MaxPool2d`, also the names of the attributes that hold them."""


class BatchNormActMaxPool2d(_BatchNormAct, nn.BatchNorm2d):
    """Equivalent to `torch.nn.BatchNorm2d(num_features, …)`, then the activation, then `torch.nn.MaxPool2d(…)`.

    The stem of a ResNet is `BatchNormActMaxPool2d(64, 3, 2, 1)`. `forward(input)` takes (N, C, H, W). Parameters,
    buffers and `state_dict` are those of `torch.nn.BatchNorm2d`.

    Args:
        num_features: C.
        kernel_size: of a window; like the next four, as in `torch.nn.MaxPool2d`.
        stride: distance between windows, or None for `kernel_size`.
        padding: around the image.
        dilation: distance between the positions of a window.
        ceil_mode: round the number of windows up.
        eps: added to the variance; like the next arguments up to `bias`, as in `torch.nn.BatchNorm2d`.
        momentum: weight of a batch in the running statistics, or None for a cumulative average.
        affine: learn `weight` and `bias`.
        track_running_stats: keep running statistics for evaluation.
        device: of parameters and buffers.
        dtype: of parameters and buffers.
        bias: False omits `bias`; needs a torch whose BatchNorm has this argument.
        act: one of `fusedtricks.functional.ACTIVATIONS`.
        act_kwargs: parameters of the activation.

    Raises:
        ValueError: unknown `act`; in forward, as in `functional.batch_norm_act_max_pool2d`.
        TypeError: a window argument is not an integer; `act_kwargs` that the activation does not take.
        RuntimeError: a window argument has more than two integers; in forward, the windows do not fit.
    """

    def __init__(
        self,
        num_features: int,
        kernel_size: Pair,
        stride: Pair | None = None,
        padding: Pair = 0,
        dilation: Pair = 1,
        ceil_mode: bool = False,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        bias: bool = True,
        act: str = "relu",
        act_kwargs: Mapping[str, float] | None = None,
    ) -> None:
        pool_arguments(kernel_size, stride, padding, dilation, ceil_mode)
        settings: dict[str, Any] = {"bias": bias, "act": act, "act_kwargs": act_kwargs}
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, **settings)
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding = padding
        self.dilation = dilation
        self.ceil_mode = ceil_mode

    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]
        """max_pool2d(act(batch_norm(input)))."""
        if type(input) is not Tensor and isinstance(input, Proxy):
            return traced(self, input)
        tensors, settings = norm_state(self, input)
        settings |= {name: getattr(self, name) for name in (*WINDOWS, "act", "act_kwargs")}
        running_mean, running_var, weight, bias = tensors
        return F.batch_norm_act_max_pool2d(input, running_mean, running_var, weight, bias, **settings)

    def _beyond_norm(self) -> Lost:
        return Lost(f"{type(self).__name__} ({self.act})", "the activation and the pooling")

    def extra_repr(self) -> str:
        windows = "".join(f", {name}={getattr(self, name)}" for name in WINDOWS)
        return super().extra_repr() + windows
