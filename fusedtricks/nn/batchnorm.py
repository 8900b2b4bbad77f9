"""BatchNorm with activation and dropout; arguments, parameters, `state_dict` and errors are stock BatchNorm's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .. import functional as F
from ..functional._arguments import activation_arguments, check_dropout
from ._tracing import Proxy, traced
from ._variance import GuardsVariance, Lost, plain


def batch_norm_act_of(
    norm: Any, input: Tensor, residual: Tensor | None, act: str, act_kwargs: Mapping[str, float] | None, p: float = 0.0
) -> Tensor:
    """Calls the fused operator with a BatchNorm's state, used as in stock's forward; dropout only in training."""
    if isinstance(input, Tensor):  # not a torch.fx proxy
        norm._check_input_dim(input)
    running_mean, running_var, weight, bias, num_batches_tracked = _state_of(norm)
    training = norm.training
    if training and not norm.track_running_stats:
        running_mean = running_var = None
    return F.batch_norm_act(
        input,
        running_mean,
        running_var,
        weight,
        bias,
        residual,
        act=act,
        act_kwargs=act_kwargs,
        training=training or (running_mean is None and running_var is None),
        momentum=norm.momentum,
        eps=norm.eps,
        num_batches_tracked=num_batches_tracked if training and norm.track_running_stats else None,
        p=p if training else 0.0,
    )


def _state_of(norm: Any) -> tuple[Any, Any, Any, Any, Any]:
    """Running mean and variance, weight, bias and count, read from the module's dicts: faster than as attributes."""
    parameters, buffers = norm._parameters, norm._buffers
    try:
        return (
            buffers["running_mean"],
            buffers["running_var"],
            parameters["weight"],
            parameters["bias"],
            buffers["num_batches_tracked"],
        )
    except KeyError:  # some are computed, for example by torch.nn.utils.parametrize
        return norm.running_mean, plain(norm.running_var), norm.weight, norm.bias, norm.num_batches_tracked


def norm_state(
    norm: Any, input: Tensor
) -> tuple[tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None], dict[str, Any]]:
    """Running statistics, weight and bias of a BatchNorm, and the keyword arguments that say how to use them."""
    if isinstance(input, Tensor):  # not a torch.fx proxy
        norm._check_input_dim(input)
    running_mean, running_var, weight, bias, num_batches_tracked = _state_of(norm)
    tracks = norm.track_running_stats
    if norm.training and not tracks:
        running_mean = running_var = None
    return (running_mean, running_var, weight, bias), {
        "training": norm.training or (running_mean is None and running_var is None),
        "momentum": norm.momentum,
        "eps": norm.eps,
        "num_batches_tracked": num_batches_tracked if norm.training and tracks else None,
    }


def act_repr(module: Any) -> str:
    """Describes what follows BatchNorm: the activation with its parameters, and dropout if there is any."""
    arguments = "".join(f", {name}={value}" for name, value in module.act_kwargs.items())
    return f", act={module.act}{arguments}" + (f", p={module.p}" if module.p else "")


def beyond_norm(module: Any) -> Lost | None:
    """What would be lost if a stock BatchNorm replaced this module."""
    name = type(module).__name__
    if module.act != "identity":
        return Lost(f"{name} ({module.act})", "the activation")
    return Lost(f"{name} (p={module.p})", "the dropout") if module.p else None


class _BatchNormAct(GuardsVariance, _BatchNorm):
    """Shared by the 1d, 2d and 3d modules. `act`, `act_kwargs` and `p` are not in the state_dict."""

    p: float = 0.0  # default for modules pickled before `p` existed

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        act: str = "relu",
        act_kwargs: Mapping[str, float] | None = None,
        p: float = 0.0,
    ) -> None:
        activation_arguments(act, act_kwargs)
        check_dropout(p, "inverted")
        # torch has this argument since 2.13; older versions raise an error themselves if they get it.
        stock = {} if bias else {"bias": False}
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, **stock)
        self.act = act
        self.act_kwargs = dict(act_kwargs or {})
        self.p = p

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """dropout(act(batch_norm(input) + residual)); residual has the input's shape and dtype, or is None."""
        if type(input) is not Tensor and isinstance(input, Proxy):
            return traced(self, input, residual)
        return batch_norm_act_of(self, input, residual, self.act, self.act_kwargs, self.p)

    def _beyond_norm(self) -> Lost | None:
        return beyond_norm(self)

    def extra_repr(self) -> str:
        return super().extra_repr() + act_repr(self)


class BatchNormAct1d(_BatchNormAct, nn.BatchNorm1d):
    r"""Equivalent to `torch.nn.BatchNorm1d(num_features, …)`, then `+ residual`, the activation, and dropout.

    `forward(input, residual=None)` takes (N, C) or (N, C, L). The `state_dict` is compatible with the stock module.

    Args:
        num_features: C.
        eps: added to the variance.
        momentum: weight of a batch in the running statistics, or None for a cumulative average.
        affine: learn `weight` (γ) and `bias` (β).
        track_running_stats: keep running statistics for evaluation.
        device: of parameters and buffers.
        dtype: of parameters and buffers.
        bias: False omits `bias` (β); needs a torch whose BatchNorm has this argument.
        act: one of `fusedtricks.functional.ACTIVATIONS`.
        act_kwargs: parameters of the activation, for example `{"negative_slope": 0.2}`.
        p: probability of *dropping* a value of the result, in training.

    Raises:
        ValueError: unknown `act`; `p` outside [0, 1] or NaN; in forward, as in `functional.batch_norm_act`.
        TypeError: `act_kwargs` that the activation does not take.
    """


class BatchNormAct2d(_BatchNormAct, nn.BatchNorm2d):
    """Equivalent to `torch.nn.BatchNorm2d(num_features, …)`, then `+ residual`, the activation, and dropout.

    `forward(input, residual=None)` takes (N, C, H, W). Arguments and errors: `BatchNormAct1d`.
    """


class BatchNormAct3d(_BatchNormAct, nn.BatchNorm3d):
    """Equivalent to `torch.nn.BatchNorm3d(num_features, …)`, then `+ residual`, the activation, and dropout.

    `forward(input, residual=None)` takes (N, C, D, H, W). Arguments and errors: `BatchNormAct1d`.
    """


class _BatchNormReLU(_BatchNormAct):
    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        p: float = 0.0,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias, p=p)


class BatchNormReLU1d(_BatchNormReLU, BatchNormAct1d):
    """`BatchNormAct1d` with `act="relu"`; takes the arguments of `torch.nn.BatchNorm1d` and `p`."""


class BatchNormReLU2d(_BatchNormReLU, BatchNormAct2d):
    """`BatchNormAct2d` with `act="relu"`; takes the arguments of `torch.nn.BatchNorm2d` and `p`."""


class BatchNormReLU3d(_BatchNormReLU, BatchNormAct3d):
    """`BatchNormAct3d` with `act="relu"`; takes the arguments of `torch.nn.BatchNorm3d` and `p`."""
