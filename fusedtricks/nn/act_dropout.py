"""Activation and dropout in one module, on their own or after a linear layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .. import functional as F
from ..functional._arguments import activation_arguments, check_dropout
from ..functional._forked import on_one_thread_if_forked
from ._tracing import Proxy, traced


class _ActDropoutArguments:
    """Shared by both modules: `act`, `act_kwargs` and `p`."""

    act: str
    act_kwargs: dict[str, float]
    p: float

    def _set_arguments(self, act: str, act_kwargs: Mapping[str, float] | None, p: float) -> None:
        activation_arguments(act, act_kwargs)
        check_dropout(p)
        self.act, self.act_kwargs, self.p = act, dict(act_kwargs or {}), p

    def _arguments(self) -> str:
        arguments = "".join(f", {name}={value}" for name, value in self.act_kwargs.items())
        return f"act={self.act}{arguments}, p={self.p}"


class ActDropout(_ActDropoutArguments, nn.Module):
    """Equivalent to an activation, then `torch.nn.Dropout(p)`, then `+ residual`; see `functional.act_dropout`.

    `forward(input, residual=None)` takes any shape.

    Args:
        act: one of `fusedtricks.functional.ACTIVATIONS`.
        p: probability of *dropping* a value, in [0, 1].
        act_kwargs: the activation's parameters, for example `{"negative_slope": 0.2}`.

    Raises:
        ValueError: unknown `act`; `p` outside [0, 1] or NaN.
        TypeError: `act_kwargs` that the activation does not take.
    """

    def __init__(self, act: str = "relu", p: float = 0.5, *, act_kwargs: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self._set_arguments(act, act_kwargs, p)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """dropout(act(input)) + residual; residual has the input's shape and dtype, or is None."""
        if type(input) is not Tensor and isinstance(input, Proxy):
            return traced(self, input, residual)
        return F.act_dropout(
            input, None, residual, act=self.act, act_kwargs=self.act_kwargs, p=self.p, training=self.training
        )

    def extra_repr(self) -> str:
        return self._arguments()


class LinearActDropout(_ActDropoutArguments, nn.Linear):
    """Equivalent to `torch.nn.Linear`, an activation, `torch.nn.Dropout(p)`, then `+ residual`.

    torch computes the matrix product; bias, activation, dropout and residual take one pass over its result. The
    `state_dict` is compatible with the stock linear layer. `forward(input, residual=None)` maps (\\*, in_features) to
    (\\*, out_features).

    Args:
        in_features: size of the input's last dimension.
        out_features: size of the output's last dimension.
        bias: add a bias.
        device: of the parameters.
        dtype: of the parameters.
        act: one of `fusedtricks.functional.ACTIVATIONS`.
        act_kwargs: parameters of the activation, for example `{"negative_slope": 0.2}`.
        p: probability of *dropping* a value, in [0, 1].

    Raises:
        ValueError: unknown `act`; `p` outside [0, 1] or NaN.
        TypeError: `act_kwargs` that the activation does not take.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        act: str = "relu",
        act_kwargs: Mapping[str, float] | None = None,
        p: float = 0.5,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self._set_arguments(act, act_kwargs, p)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """dropout(act(input @ weight.T + bias)) + residual; residual has the output's shape and dtype, or is None."""
        if type(input) is not Tensor and isinstance(input, Proxy):
            return traced(self, input, residual)
        return F.act_dropout(
            on_one_thread_if_forked(nn.functional.linear, input, self.weight),
            self.bias,
            residual,
            act=self.act,
            act_kwargs=self.act_kwargs,
            p=self.p,
            training=self.training,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self._arguments()}"
