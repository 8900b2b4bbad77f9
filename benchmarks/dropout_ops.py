"""Dropout in all its forms, with probability 1/2: stock's composition, ours, and the reference."""

from functools import partial
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from fusedtricks import eager
from fusedtricks import functional as fused_functional

from .check import Reference
from .op import Op, Pair, Shape

P = 0.5


def dropout_reference(model: Any, seed: int, x: Tensor) -> Tensor:
    return eager.dropout(x, P, seed=seed)


DROPOUT = Op(
    "dropout",
    lambda shape: (F.dropout, fused_functional.dropout),
    dropout_reference,
    draws=True,
    backward_tensors=2,
)


def act_dropout(act: str) -> Op:
    """dropout(act(x + bias))."""

    def make(shape: Shape) -> Pair:
        formula = eager.FORMULAS[act]

        def stock(x: Tensor, bias: Tensor) -> Tensor:
            return F.dropout(formula(x + bias.to(x.dtype)), P)

        return stock, partial(fused_functional.act_dropout, act=act, p=P)

    return Op(
        f"{act}_dropout_bias",
        make,
        act_dropout_reference(act),
        draws=True,
        parameters=lambda shape: [bias_shape(shape)],
    )


def act_dropout_reference(act: str) -> Reference:
    def reference(model: Any, seed: int, x: Tensor, bias: Tensor) -> Tensor:
        return eager.act_dropout(x, bias, act=act, p=P, seed=seed)

    return reference


def bias_shape(shape: Shape) -> Shape:
    """Of a value for each channel or, where the input is a matrix, for each column."""
    return shape[1:] if len(shape) == 2 else (shape[1], *(1,) * (len(shape) - 2))


def channel_dropout(name: str) -> Op:
    """dropout2d and its like."""

    def make(shape: Shape) -> Pair:
        return partial(getattr(F, name), p=P), partial(getattr(fused_functional, name), p=P)

    def reference(model: Any, seed: int, x: Tensor) -> Tensor:
        return eager.feature_dropout(x, None, 2, P, seed=seed)

    return Op(name, make, reference, draws=True, backward_tensors=2)


def _make_drop_path(shape: Shape) -> Pair:
    def stock(x: Tensor, residual: Tensor) -> Tensor:
        """As timm writes it."""
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - P).div_(1 - P)
        return residual + x * mask

    def fused(x: Tensor, residual: Tensor) -> Tensor:
        return fused_functional.drop_path(x, P, residual)

    return stock, fused


def _drop_path_reference(model: Any, seed: int, x: Tensor, residual: Tensor) -> Tensor:
    return eager.feature_dropout(x, residual, 1, P, seed=seed)


DROP_PATH = Op(
    "drop_path_add",
    _make_drop_path,
    _drop_path_reference,
    draws=True,
    inputs=2,
    forward_tensors=3,
    backward_tensors=2,
)


def _make_alpha_dropout(shape: Shape) -> Pair:
    stock, fused = F.alpha_dropout, fused_functional.alpha_dropout
    return partial(stock, p=P, training=True), partial(fused, p=P, training=True)


def _alpha_dropout_reference(model: Any, seed: int, x: Tensor) -> Tensor:
    return eager.dropout(x, P, seed=seed, mode="alpha")


ALPHA_DROPOUT = Op("alpha_dropout", _make_alpha_dropout, _alpha_dropout_reference, draws=True, backward_tensors=2)
