"""What a call costs the host: ops on tensors so small that the arithmetic takes no time.

Each is timed on one thread against stock's composition, as a model calls it: forward records gradients.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fusedtricks
from fusedtricks import eager
from fusedtricks import functional as fused_functional
from fusedtricks import nn as fused_nn
from fusedtricks.stock import activation_layer

from .batch_norm_ops import norm_reference
from .case import Case
from .dropout_ops import P, act_dropout_reference, bias_shape, dropout_reference
from .elementwise_ops import activation_reference
from .op import Op, Pair, Shape, build_op
from .workload import Workload

OP = "overhead"
SHAPE = (2, 8, 2, 2)
MIN_ROUNDS, MAX_ROUNDS = 25, 201
ACTIVATIONS = [name for name in fused_functional.ACTIVATIONS if name != "identity"]


class StockBatchNormReLU(nn.Module):
    """BatchNorm and ReLU as a model's own forward calls them: two modules, and no third one around them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()

    def __call__(self, x: Tensor) -> Tensor:
        return self.relu(self.norm(x))


class StockBatchNormAddReLU(StockBatchNormReLU):
    """The same with a residual."""

    def __call__(self, x: Tensor, residual: Tensor) -> Tensor:  # type: ignore[override]
        return self.relu(self.norm(x) + residual)


def _module_norm(name: str, stock: type[StockBatchNormReLU], inputs: int) -> Op:
    def make(shape: Shape) -> Pair:
        return stock(shape[1]), fused_nn.BatchNormReLU2d(shape[1])

    return Op(name, make, norm_reference("relu"), flips=True, inputs=inputs)


def _functional_norm() -> Op:
    def stock(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return F.relu(F.batch_norm(x, mean, var, weight, bias, True))

    def fused(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return fused_functional.batch_norm_act(x, mean, var, weight, bias, act="relu", training=True)

    def reference(model: Any, seed: int, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return eager.batch_norm_act(x, mean, var, weight, bias, act="relu", training=True)

    def two_per_channel(shape: Shape) -> Sequence[Shape]:
        return [shape[1:2]] * 2

    return Op(
        "functional.batch_norm_act",
        lambda shape: (stock, fused),
        reference,
        flips=True,
        parameters=two_per_channel,
        buffers=two_per_channel,
    )


def _fused_chain() -> Op:
    def make(shape: Shape) -> Pair:
        chain = nn.Sequential(nn.BatchNorm2d(shape[1]), nn.ReLU())
        return chain, fusedtricks.fuse(chain)

    norm = norm_reference("relu")

    def reference(model: Any, seed: int, x: Tensor) -> Tensor:
        return norm(model[0], seed, x)

    return Op("fuse.batch_norm_relu", make, reference, flips=True)


def _activation(name: str) -> Op:
    def make(shape: Shape) -> Pair:
        stock = activation_layer(name)
        ours = getattr(fused_nn, type(stock).__name__, None)
        settings = {"approximate": "tanh"} if name == "gelu_tanh" else {}
        return stock, ours(**settings) if ours else partial(fused_functional.activation, act=name)

    return Op(name, make, activation_reference(name))


def _dropout() -> Op:
    return Op("dropout", lambda shape: (nn.Dropout(P), fused_nn.Dropout(P)), dropout_reference, draws=True)


def _act_dropout() -> Op:
    def stock(x: Tensor, bias: Tensor) -> Tensor:
        return F.dropout(F.relu(x + bias), P)

    def fused(x: Tensor, bias: Tensor) -> Tensor:
        return fused_functional.act_dropout(x, bias, None, act="relu", p=P)

    return Op(
        "act_dropout",
        lambda shape: (stock, fused),
        act_dropout_reference("relu"),
        draws=True,
        parameters=lambda shape: [bias_shape(shape)],
    )


OPS = [
    _module_norm("batch_norm_relu", StockBatchNormReLU, inputs=1),
    _module_norm("batch_norm_add_relu", StockBatchNormAddReLU, inputs=2),
    _functional_norm(),
    _fused_chain(),
    *(_activation(name) for name in ACTIVATIONS),
    _dropout(),
    _act_dropout(),
]


def overhead_cases() -> list[Case]:
    """Every op above, forward and forward+backward."""
    return [
        Case(OP, op.name, SHAPE, torch.float32, "contiguous", direction, partial(build_overhead, op))
        for op in OPS
        for direction in ("forward", "forward+backward")
    ]


def build_overhead(op: Op, case: Case) -> Workload:
    """The op on one thread, in more rounds than others need, without a copy: bytes say nothing here."""
    workload = build_op(op, case)
    sides = {name: side for name, side in workload.sides.items() if name != "copy"}
    return replace(workload, sides=sides, threads=1, min_bytes=None, min_rounds=MIN_ROUNDS, max_rounds=MAX_ROUNDS)
