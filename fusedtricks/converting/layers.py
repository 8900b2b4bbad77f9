"""What `to_stock` makes of layers that `torch.nn` has no class for: plain torch operations, also for TorchScript.

Attributes and `state_dict` keys are those of our module of the same name.
"""

from types import SimpleNamespace
from typing import Any, List, Optional  # noqa: UP035  (TorchScript reads these)

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AddAfterFirst(nn.Sequential):
    """The first module, then `+ residual` if there is one, then the others."""

    def forward(self, input: Tensor, residual: Optional[Tensor] = None) -> Tensor:  # noqa: UP045
        for i, module in enumerate(self):
            input = module(input)
            if i == 0 and residual is not None:
                input = input + residual
        return input


class AddAtEnd(nn.Sequential):
    """The modules, then `+ residual` if there is one."""

    def forward(self, input: Tensor, residual: Optional[Tensor] = None) -> Tensor:  # noqa: UP045
        for module in self:
            input = module(input)
        return input if residual is None else input + residual


class ActivatedMaxima(nn.Sequential):
    """Pooling that also returns indices, then an activation of the maxima."""

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        maxima, indices = self[0](input)
        return self[1](maxima), indices


class ClassicDropout(nn.Module):
    """Dropout that scales in evaluation instead of training."""

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        super().__init__()
        self.p = p
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        return classic_dropout(input, self.p, self.training, self.inplace)


def classic_dropout(input: Tensor, p: float, training: bool, inplace: bool) -> Tensor:
    """Dropout that multiplies by 1 - p in evaluation."""
    if not training:
        return input.mul_(1 - p) if inplace else input * (1 - p)
    dropped = F.dropout(torch.ones_like(input), p) == 0
    return input.masked_fill_(dropped, 0.0) if inplace else input.masked_fill(dropped, 0.0)


def drop_samples(x: Tensor, p: float, mode: str, scale_by_keep: bool) -> Tensor:
    """Stochastic depth in training: (N, *) with samples, or with mode "batch" all of them, dropped."""
    shape = [1] * x.dim()
    if mode == "row":
        shape[0] = x.shape[0]
    dropped = F.dropout(torch.ones(shape, dtype=x.dtype, device=x.device), p) == 0
    scale = 1 / (1 - p) if scale_by_keep and p < 1 else 1.0
    return (x * scale).masked_fill(dropped, 0.0)


class DropPath(nn.Module):
    """Stochastic depth of a branch, then `+ residual` if there is one."""

    def __init__(self, drop_prob: float = 0.0, scale_by_keep: bool = True) -> None:
        super().__init__()
        self.drop_prob = drop_prob
        self.scale_by_keep = scale_by_keep

    def forward(self, x: Tensor, residual: Optional[Tensor] = None) -> Tensor:  # noqa: UP045
        if self.training and self.drop_prob > 0:
            x = drop_samples(x, self.drop_prob, "row", self.scale_by_keep)
        return x if residual is None else residual + x


class StochasticDepth(nn.Module):
    """A residual block that training skips for some samples."""

    def __init__(self, block: nn.Module, p: float = 0.5, mode: str = "row") -> None:
        super().__init__()
        self.block = block
        self.p = p
        self.mode = mode

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return input + self.block(input)
        if self.mode != "skip":
            return input + drop_samples(self.block(input), self.p, self.mode, True)
        if self.p == 1:
            return input
        samples = input.shape[0]
        kept = min(samples, max(1, int(samples * (1 - self.p) + 0.5)))
        index = torch.randperm(samples, device=input.device)[:kept]
        branch = self.block(input.index_select(0, index))
        skip = input.to(torch.promote_types(input.dtype, branch.dtype))  # they differ under autocast
        return skip.index_add(0, index, branch.to(skip.dtype), alpha=samples / max(1, kept))


class StochasticDepthWithArguments(StochasticDepth):
    """The same where the block takes more than one argument; not for TorchScript."""

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        def block(rows: Tensor) -> Tensor:
            return self.block(rows, *args, **kwargs)

        called: Any = SimpleNamespace(block=block, p=self.p, mode=self.mode, training=self.training)
        return StochasticDepth.forward(called, input)


def activate(x: Tensor, act: str, parameters: List[float]) -> Tensor:  # noqa: UP006
    """An activation by name; its parameters in order, and any others after them."""
    if act == "relu":
        x = F.relu(x)
    elif act == "relu6":
        x = F.relu6(x)
    elif act == "leaky_relu":
        x = F.leaky_relu(x, parameters[0])
    elif act == "elu":
        x = F.elu(x, parameters[0])
    elif act == "selu":
        x = F.selu(x)
    elif act == "gelu":
        x = F.gelu(x)
    elif act == "gelu_tanh":
        x = F.gelu(x, approximate="tanh")
    elif act == "sigmoid":
        x = torch.sigmoid(x)
    elif act == "tanh":
        x = torch.tanh(x)
    elif act == "silu":
        x = F.silu(x)
    elif act == "mish":
        x = F.mish(x)
    elif act == "hardswish":
        x = F.hardswish(x)
    elif act == "hardsigmoid":
        x = F.hardsigmoid(x)
    elif act == "softplus":
        x = F.softplus(x, parameters[0], parameters[1])
    elif act != "identity":
        raise ValueError("unknown activation " + act)
    return x


class _DropConnect(nn.Module):
    """A linear layer or convolution whose weights are dropped in training. `act_parameters` are for `activate`."""

    weight: Tensor
    bias: Optional[Tensor]  # noqa: UP045
    p: float
    inference: str
    samples: int
    act: str
    act_parameters: List[float]  # noqa: UP006

    def forward(self, input: Tensor) -> Tensor:
        if self.training:
            return self._activated(self._product(input, F.dropout(self.weight, self.p), self.bias))
        mean = self._product(input, self.weight, self.bias)
        if self.inference == "mean" or self.act == "identity" or self.p == 0:
            return self._activated(mean)
        deviation = self._variance(input).sqrt()
        centre, total = mean.to(deviation.dtype), torch.zeros_like(deviation)
        for _ in range(self.samples):
            total = total + self._activated(torch.addcmul(centre, deviation, torch.randn_like(deviation)))
        return (total / self.samples).to(mean.dtype)

    def _activated(self, x: Tensor) -> Tensor:
        return activate(x, self.act, self.act_parameters)

    def _variance(self, input: Tensor) -> Tensor:
        """Of the product over random masks, in float32 at least, because squares leave the range of half types."""
        dtype = torch.promote_types(torch.promote_types(input.dtype, self.weight.dtype), torch.float32)
        input, weight = input.to(dtype).square(), self.weight.to(dtype).square()
        if torch.jit.is_scripting() or input.device.type not in ("cpu", "cuda"):
            product = self._product(input, weight, None)
        else:
            with torch.autocast(input.device.type, enabled=False):
                product = self._product(input, weight, None)
        return product * (self.p / (1 - self.p))

    def _product(self, input: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:  # noqa: UP045
        raise NotImplementedError


class DropConnectLinear(_DropConnect, nn.Linear):  # type: ignore[misc]
    """A linear layer with dropped weights."""

    def _product(self, input: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:  # noqa: UP045
        return F.linear(input, weight, bias)


class _DropConnectConv(_DropConnect, nn.modules.conv._ConvNd):
    def _product(self, input: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:  # noqa: UP045
        return self._conv_forward(input, weight, bias)


class DropConnectConv1d(_DropConnectConv, nn.Conv1d):
    """A convolution with dropped weights."""


class DropConnectConv2d(_DropConnectConv, nn.Conv2d):
    """A convolution with dropped weights."""


class DropConnectConv3d(_DropConnectConv, nn.Conv3d):
    """A convolution with dropped weights."""
