"""DropConnect as modules: the stock linear layer and convolutions, with weights dropped in training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional as F
from ..functional._arguments import activation_arguments, check_dropout
from ..functional._drop_connect import check_moments, moments
from ..functional._forked import on_one_thread_if_forked
from ._tracing import Proxy, traced

SAMPLES = 64


class _DropConnect(nn.Module):
    """Shared by the modules. Must come before the stock module in the list of base classes."""

    weight: Tensor
    bias: Any

    def __init__(
        self,
        *stock: Any,
        p: float = 0.5,
        inference: str = "mean",
        act: str = "identity",
        act_kwargs: Mapping[str, float] | None = None,
        samples: int = SAMPLES,
    ) -> None:
        check_dropout(p, "inverted")
        if inference not in ("mean", "moments"):
            raise ValueError(f"inference must be 'mean' or 'moments', but got {inference!r}")
        if inference == "moments":
            check_moments(p)
        if samples < 1:
            raise ValueError(f"samples must be at least 1, but got {samples}")
        activation_arguments(act, act_kwargs)
        super().__init__(*stock)
        self.p = p
        self.inference = inference
        self.act = act
        self.act_kwargs: dict[str, Any] = dict(act_kwargs or {})
        self.samples = samples

    def forward(self, input: Tensor) -> Tensor:
        if type(input) is not Tensor and isinstance(input, Proxy):
            return traced(self, input)
        if self.training:
            return self._activated(self._dropped(input))
        if self.inference == "mean" or self.act == "identity" or self.p == 0:
            return self._activated(on_one_thread_if_forked(self._product, input, self.weight, self.bias))
        return on_one_thread_if_forked(self._sampled, *self.moments(input))

    def moments(self, input: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of the activation's input over random masks; see `functional.drop_connect_moments`."""
        return on_one_thread_if_forked(moments, self._product, input, self.weight, self.bias, self.p)

    def _sampled(self, mean: Tensor, variance: Tensor) -> Tensor:
        """The mean of the activation over samples drawn from the Gaussian."""
        centre, deviation = mean.to(variance.dtype), variance.sqrt()
        total = torch.zeros_like(deviation)
        for _ in range(self.samples):
            total = total + self._activated(torch.addcmul(centre, deviation, torch.randn_like(deviation)))
        return (total / self.samples).to(mean.dtype)

    def _activated(self, x: Tensor) -> Tensor:
        return x if self.act == "identity" else F.activation(x, self.act, **self.act_kwargs)

    def _product(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The stock module's computation with these parameters."""
        raise NotImplementedError

    def _dropped(self, input: Tensor) -> Tensor:
        """The same with a dropped weight."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        text = f"{super().extra_repr()}, p={self.p}"
        if self.inference != "mean":
            text += f", inference={self.inference!r}, samples={self.samples}"
        if self.act != "identity":
            text += f", act={self.act}" + "".join(f", {name}={value}" for name, value in self.act_kwargs.items())
        return text


class DropConnectLinear(_DropConnect, nn.Linear):
    r"""Equivalent to `torch.nn.Linear(in_features, out_features, …)` and the activation, with dropped weights.

    Training computes act(linear) with weights zeroed with probability `p` and the others divided by 1 - p (Wan et al.,
    2013). Each call draws one mask, which the whole mini-batch shares; the paper draws one per example. See
    `functional.drop_connect_linear`. The `state_dict` is compatible with the stock module.

    In evaluation, `inference="mean"` computes act(linear) with unchanged weights. `inference="moments"` follows the
    paper: over random masks, a unit before its activation is nearly Gaussian. The output is the mean of the activation
    over `samples` draws from that Gaussian, using torch's generator; without an activation it is simply the Gaussian's
    mean. `module.moments(input)` returns mean and variance if you want your own inference.

    Args:
        in_features: size of the input's last dimension.
        out_features: size of the output's last dimension.
        bias: learn a bias, which is never dropped.
        device: of the parameters.
        dtype: of the parameters.
        p: probability of *dropping* a weight, in [0, 1]; below 1 for `inference="moments"`.
        inference: "mean" or "moments".
        act: one of `fusedtricks.functional.ACTIVATIONS`, applied in training and in evaluation.
        act_kwargs: parameters of the activation.
        samples: number of draws for `inference="moments"`; the error of their mean is proportional to 1 / √samples.

    Raises:
        ValueError: `p` outside [0, 1] or NaN, or 1 with "moments"; unknown `inference` or `act`; `samples` below 1.
        TypeError: `act_kwargs` that the activation does not take.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        p: float = 0.5,
        inference: str = "mean",
        act: str = "identity",
        act_kwargs: Mapping[str, float] | None = None,
        samples: int = SAMPLES,
    ) -> None:
        stock = (in_features, out_features, bias, device, dtype)
        super().__init__(*stock, p=p, inference=inference, act=act, act_kwargs=act_kwargs, samples=samples)

    def _product(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return nn.functional.linear(input, weight, bias)

    def _dropped(self, input: Tensor) -> Tensor:
        return F.drop_connect_linear(input, self.weight, self.bias, self.p)


class _DropConnectConv(_DropConnect, nn.modules.conv._ConvNd):
    """A convolution. Must come before the stock class in the list of base classes."""

    _function: Callable[..., Tensor]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: str | int | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        p: float = 0.5,
        inference: str = "mean",
        act: str = "identity",
        act_kwargs: Mapping[str, float] | None = None,
        samples: int = SAMPLES,
    ) -> None:
        geometry = (kernel_size, stride, padding, dilation, groups)
        stock = (in_channels, out_channels, *geometry, bias, padding_mode, device, dtype)
        super().__init__(*stock, p=p, inference=inference, act=act, act_kwargs=act_kwargs, samples=samples)

    def _product(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._conv_forward(input, weight, bias)

    def _dropped(self, input: Tensor) -> Tensor:
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            input = nn.functional.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        geometry = (self.stride, padding, self.dilation, self.groups)
        return self._function(input, self.weight, self.bias, *geometry, self.p)


class DropConnectConv1d(_DropConnectConv, nn.Conv1d):
    """Equivalent to `torch.nn.Conv1d(in_channels, out_channels, …)` and the activation, with dropped weights.

    All positions and samples share one mask of the filters. The stock arguments come first; for the others, evaluation
    and errors see `DropConnectLinear`.
    """

    _function = staticmethod(F.drop_connect_conv1d)


class DropConnectConv2d(_DropConnectConv, nn.Conv2d):
    """Equivalent to `torch.nn.Conv2d(…)` and the activation, with dropped weights; see `DropConnectConv1d`."""

    _function = staticmethod(F.drop_connect_conv2d)


class DropConnectConv3d(_DropConnectConv, nn.Conv3d):
    """Equivalent to `torch.nn.Conv3d(…)` and the activation, with dropped weights; see `DropConnectConv1d`."""

    _function = staticmethod(F.drop_connect_conv3d)
