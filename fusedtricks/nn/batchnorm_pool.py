"""Batch normalisation, an activation and max-pooling in one module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .. import functional as F
from ..functional._batch_norm_act_max_pool2d import Pair, pool_arguments
from .batchnorm import _BatchNormAct, norm_state

WINDOWS = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
"""The arguments of `torch.nn.MaxPool2d`, which are attributes of that name."""


class BatchNormActMaxPool2d(_BatchNormAct, nn.BatchNorm2d):
    """Equivalent to `torch.nn.BatchNorm2d(num_features, …)`, then the activation, then `torch.nn.MaxPool2d(…)`.

    The stem of a ResNet is `BatchNormActMaxPool2d(64, 3, 2, 1)`. `forward(input)` takes (N, C, H, W). Parameters,
    buffers and `state_dict` are those of `torch.nn.BatchNorm2d`.

    Args:
        num_features: C.
        kernel_size: of a window, as the four that follow those of `torch.nn.MaxPool2d`.
        stride: from one window to the next, or None for `kernel_size`.
        padding: around the image.
        dilation: from one place of a window to the next.
        ceil_mode: round the number of windows up.
        eps: as of `torch.nn.BatchNorm2d`, and so are the arguments that follow up to `bias`.
        momentum: weight of a batch in the running statistics, or None for a cumulative average.
        affine: learn `weight` and `bias`.
        track_running_stats: keep running statistics for evaluation.
        device: of parameters and buffers.
        dtype: of parameters and buffers.
        bias: False leaves out `bias`, in versions of torch whose BatchNorm has the argument.
        act: one of `fusedtricks.functional.ACTIVATIONS`.
        act_kwargs: its parameters.

    Raises:
        ValueError: unknown `act`; on forward, as `functional.batch_norm_act_max_pool2d`.
        TypeError: windows not given by integers; `act_kwargs` that the activation does not take.
        RuntimeError: windows given by more than two integers; on forward, those that do not fit.
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
        tensors, settings = norm_state(self, input)
        settings |= {name: getattr(self, name) for name in (*WINDOWS, "act", "act_kwargs")}
        running_mean, running_var, weight, bias = tensors
        return F.batch_norm_act_max_pool2d(input, running_mean, running_var, weight, bias, **settings)

    def _beyond_norm(self) -> str:
        return f"the activation and the pooling of {type(self).__name__} ({self.act})"

    def extra_repr(self) -> str:
        windows = "".join(f", {name}={getattr(self, name)}" for name in WINDOWS)
        return super().extra_repr() + windows
