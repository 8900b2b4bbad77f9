"""DropConnect as modules: the stock linear layer and convolutions, their weights dropped in training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional as F
from ..functional._arguments import activation_arguments
from ..functional._drop_connect import check_moments, moments
from ..functional._arguments import check_dropout

SAMPLES = 64


class _DropConnect(nn.Module):
    """What the modules share: in front of the stock module among the bases."""

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
            raise ValueError(f"inference has to be 'mean' or 'moments', but got {inference!r}")
        if inference == "moments":
            check_moments(p)
        if samples < 1:
            raise ValueError(f"samples has to be at least 1, but got {samples}")
        activation_arguments(act, act_kwargs)
        super().__init__(*stock)
        self.p = p
        self.inference = inference
        self.act = act
        self.act_kwargs: dict[str, Any] = dict(act_kwargs or {})
        self.samples = samples

    def forward(self, input: Tensor) -> Tensor:
        if self.training:
            return self._activated(self._dropped(input))
        if self.inference == "mean" or self.act == "identity" or self.p == 0:
            return self._activated(self._product(input, self.weight, self.bias))
        return self._sampled(*self.moments(input))

    def moments(self, input: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance, over the masks, of what the activation is given; see `functional.drop_connect_moments`."""
        return moments(self._product, input, self.weight, self.bias, self.p)

    def _sampled(self, mean: Tensor, variance: Tensor) -> Tensor:
        """The mean of the activation over draws from the Gaussian."""
        centre, deviation = mean.to(variance.dtype), variance.sqrt()
        total = torch.zeros_like(deviation)
        for _ in range(self.samples):
            total = total + self._activated(torch.addcmul(centre, deviation, torch.randn_like(deviation)))
        return (total / self.samples).to(mean.dtype)

    def _activated(self, x: Tensor) -> Tensor:
        return x if self.act == "identity" else F.activation(x, self.act, **self.act_kwargs)

    def _product(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What the stock module does, with these parameters."""
        raise NotImplementedError

    def _dropped(self, input: Tensor) -> Tensor:
        """The same with the weight dropped."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        text = f"{super().extra_repr()}, p={self.p}"
        if self.inference != "mean":
            text += f", inference={self.inference!r}, samples={self.samples}"
        if self.act != "identity":
            text += f", act={self.act}" + "".join(f", {name}={value}" for name, value in self.act_kwargs.items())
        return text


class DropConnectLinear(_DropConnect, nn.Linear):
    r"""Equivalent to `torch.nn.Linear(in_features, out_features, …)` and the activation, with weights dropped.

    In training act(linear) with weights zeroed with probability `p` and the others divided by 1 - p (Wan et al., 2013);
    one mask a call, which all examples of the mini-batch share, where the paper draws one for each example. See
    `functional.drop_connect_linear`. Loads from and into the `state_dict` of the stock module.

    In evaluation `inference="mean"` is act(linear) with the weights as they are. `inference="moments"` is the paper's:
    with random masks a unit before its activation is nearly Gaussian, and the mean of the activation over `samples`
    draws from that Gaussian, drawn from torch's generator, is the output. Without an activation that is the mean, which
    is returned. `module.moments(input)` gives mean and variance for an inference of one's own.

    Args:
        in_features: of the input's last dimension.
        out_features: of the output's.
        bias: learn a bias, which is never dropped.
        device: of the parameters.
        dtype: of the parameters.
        p: probability of *dropping* a weight, in [0, 1]; below 1 for the moments.
        inference: "mean" or "moments".
        act: one of `fusedtricks.functional.ACTIVATIONS`, applied in training and in evaluation.
        act_kwargs: its parameters.
        samples: draws of `inference="moments"`; the error of their mean falls with its square root.

    Raises:
        ValueError: `p` outside [0, 1] or NaN, or 1 with the moments; unknown `inference` or `act`; `samples` below 1.
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
    """A convolution whose stock class is behind it among the bases."""

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
    """Equivalent to `torch.nn.Conv1d(in_channels, out_channels, kernel_size, …)` and the activation, weights dropped.

    All positions and samples share one mask of the filters. Stock arguments first; the others, evaluation and errors:
    `DropConnectLinear`.
    """

    _function = staticmethod(F.drop_connect_conv1d)


class DropConnectConv2d(_DropConnectConv, nn.Conv2d):
    """Equivalent to `torch.nn.Conv2d(…)` and the activation, with weights dropped; see `DropConnectConv1d`."""

    _function = staticmethod(F.drop_connect_conv2d)


class DropConnectConv3d(_DropConnectConv, nn.Conv3d):
    """Equivalent to `torch.nn.Conv3d(…)` and the activation, with weights dropped; see `DropConnectConv1d`."""

    _function = staticmethod(F.drop_connect_conv3d)
