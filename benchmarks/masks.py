"""Ops with masks: stock's composition, ours, and the check that both do the same to what they keep."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusedtricks import functional as fused_functional
from fusedtricks.eager import FORMULAS

from .workload import Check, Mismatch, Op

P = 0.5


class Tail(nn.Module):
    """dropout(act(x + bias)): a value of the bias for each channel, or for each index of a matrix's last dimension."""

    def __init__(self, act: str, shape: tuple[int, ...], fused: bool) -> None:
        super().__init__()
        places = shape[1:] if len(shape) == 2 else (shape[1], *(1,) * (len(shape) - 2))
        self.bias = nn.Parameter(torch.linspace(-0.5, 0.5, math.prod(places)).view(places))
        self.act, self.fused = act, fused

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            return fused_functional.act_dropout(x, self.bias, act=self.act, p=P)
        return F.dropout(FORMULAS[self.act](x + self.bias), P)

    def undropped(self, x: Tensor) -> Tensor:
        """What there is to drop."""
        return FORMULAS[self.act](x + self.bias)


def act_dropout(act: str) -> Op:
    def make(shape: tuple[int, ...]) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
        return Tail(act, shape, fused=False), Tail(act, shape, fused=True)

    return Op(f"{act}_dropout_bias", make, check=check_masked(lambda tail, x: tail.undropped(x)))


def check_masked(undropped: Callable[..., Tensor], groups: int | None = None) -> Check:
    """A check that values are dropped or are those of `undropped(function, *inputs)` / (1 - P), gradients too.

    Args:
        undropped: the values without a mask, of the function and its inputs.
        groups: how many of the first dimensions have a mask of their own; all, by default.
    """

    def check(
        fused: Callable[..., Tensor], eager: Callable[..., Tensor], inputs: list[Tensor], grad_output: Tensor | None
    ) -> None:
        leaves = [x.detach().clone().requires_grad_(grad_output is not None) for x in inputs]
        y = fused(*leaves)
        whole = undropped(fused, *leaves)
        sure = whole.detach().abs() > 1e-2
        kept = (y.detach() != 0) & sure
        share, n = kept.sum().item() / sure.sum().item(), math.prod(y.shape[:groups])
        if abs(share - (1 - P)) > 6 * math.sqrt(P * (1 - P) / n) + 1e-3:
            raise Mismatch(f"output: keeps {share:.4f} of the elements instead of {1 - P}")
        tolerance = 1e-4 if y.dtype is torch.float32 else 2e-2
        _compare("output", y, whole / (1 - P), kept, tolerance)
        if grad_output is None:
            return
        (actual,) = torch.autograd.grad(y, leaves[:1], grad_output)
        (expected,) = torch.autograd.grad(whole, leaves[:1], grad_output / (1 - P))
        _compare("gradient of input 0", actual, expected, kept, tolerance)

    return check


def _compare(name: str, actual: Tensor, expected: Tensor, where: Tensor, tolerance: float) -> None:
    error = ((actual - expected).abs() / (1 + expected.abs()))[where]
    if error.numel() and not error.max().item() <= tolerance:
        raise Mismatch(f"{name}: off by up to {error.max().item():.1e}")


def channel_dropout(name: str) -> Op:
    """dropout2d and its like, as the function of the stock name or of the fused one."""

    def make(shape: tuple[int, ...]) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
        return partial(getattr(F, name), p=P), partial(getattr(fused_functional, name), p=P)

    return Op(name, make, backward_tensors=2, check=check_masked(lambda _, x: x, groups=2))


def _stock_drop_path(x: Tensor, residual: Tensor) -> Tensor:
    """timm's."""
    mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - P).div_(1 - P)
    return residual + x * mask


def _no_mask(*_: Any) -> None:
    """drop_path adds a residual: tests compare it."""


DROP_PATH = Op(
    "drop_path_add",
    lambda shape: (_stock_drop_path, lambda x, residual: fused_functional.drop_path(x, P, residual)),
    forward_tensors=3,
    backward_tensors=2,
    inputs=2,
    check=_no_mask,
)

ALPHA_DROPOUT = Op(
    "alpha_dropout",
    lambda shape: (
        partial(F.alpha_dropout, p=P, training=True),
        partial(fused_functional.alpha_dropout, p=P, training=True),
    ),
    backward_tensors=2,
    check=_no_mask,
)
