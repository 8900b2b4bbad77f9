"""The registry: every case that can be timed on a CPU."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial

import torch

from fusedtricks import functional as fused_functional

from .batch_norm_ops import batch_norm, batch_norm_dropout, stem
from .case import Case
from .dropout_ops import ALPHA_DROPOUT, DROP_PATH, DROPOUT, act_dropout, channel_dropout
from .elementwise_ops import activation
from .networks import network_cases
from .op import Op, Pair, Shape, build_op
from .overhead import overhead_cases
from .pooling_ops import fractional_max_pool
from .shapes import (
    CIFAR_SHAPES,
    DROP_CONNECT_SHAPES,
    EXPANDED_SHAPES,
    LARGE_SHAPES,
    LARGEST_SHAPES,
    MLP_SHAPES,
    PROJECTED_SHAPES,
    RESNET50_SHAPES,
    STEM_SHAPES,
    TINY_SHAPES,
    TRANSFORMER_SHAPES,
    TYPICAL_SHAPES,
    VIDEO_SHAPES,
    VIT_SHAPES,
    Shapes,
    some,
)
from .weights_and_depth import DROP_CONNECT, STOCHASTIC_DEPTH


def under_inductor(op: Op) -> Op:
    """An op under torch.compile: "eager" is what Inductor makes of the stock layers, "fused" calls our operator."""

    def make(shape: Shape) -> Pair:
        torch.compiler.reset()
        stock, fused = op.make(shape)
        return torch.compile(stock, dynamic=False), torch.compile(fused, dynamic=False)

    return replace(op, name=f"inductor_{op.name}", make=make)


def op_cases(
    op: Op,
    shapes: Shapes,
    layouts: Iterable[str] = ("contiguous", "channels_last"),
    dtypes: Iterable[torch.dtype] = (torch.float32, torch.bfloat16),
) -> list[Case]:
    """The op at each shape, in each dtype, each layout that the shape has, and each direction."""
    return [
        Case(op.name, name, shape, dtype, layout, direction, partial(build_op, op))
        for name, shape in shapes.items()
        for dtype in dtypes
        for layout in layouts
        if layout == "contiguous" or len(shape) == 4
        for direction in ("forward", "forward+backward")
        if op.training or direction == "forward"
    ]


def _cases() -> list[Case]:
    plain = ("contiguous",)
    elementwise_shapes = LARGE_SHAPES | some(MLP_SHAPES, "1024x4096") | TINY_SHAPES
    cases = op_cases(batch_norm("relu"), RESNET50_SHAPES | CIFAR_SHAPES | MLP_SHAPES | TINY_SHAPES)
    cases += op_cases(batch_norm("relu", residual=True), RESNET50_SHAPES)
    cases += op_cases(batch_norm("relu6"), EXPANDED_SHAPES)
    cases += op_cases(batch_norm("identity"), PROJECTED_SHAPES | TYPICAL_SHAPES)
    for act in ("leaky_relu", "silu", "gelu"):
        cases += op_cases(batch_norm(act), TYPICAL_SHAPES)
    cases += op_cases(batch_norm_dropout("relu"), MLP_SHAPES | TYPICAL_SHAPES)
    cases += op_cases(batch_norm("relu", training=False), TYPICAL_SHAPES | TINY_SHAPES)
    cases += op_cases(stem(), STEM_SHAPES)
    cases += op_cases(stem(training=False), STEM_SHAPES, dtypes=(torch.float32,))
    for name in fused_functional.ACTIVATIONS:
        if name != "identity":
            cases += op_cases(activation(name), elementwise_shapes, plain)
    cases += op_cases(activation("leaky_relu"), LARGEST_SHAPES, plain)
    cases += op_cases(activation("leaky_relu", inplace=True), elementwise_shapes | LARGEST_SHAPES, plain)
    cases += op_cases(DROPOUT, TYPICAL_SHAPES | MLP_SHAPES | TINY_SHAPES)
    tail_shapes = LARGE_SHAPES | some(MLP_SHAPES, "256x4096")
    for act in ("relu", "gelu"):
        cases += op_cases(act_dropout(act), tail_shapes)
    cases += op_cases(channel_dropout("dropout2d"), TYPICAL_SHAPES)
    cases += op_cases(ALPHA_DROPOUT, tail_shapes)
    cases += op_cases(DROP_PATH, VIT_SHAPES | LARGE_SHAPES)
    cases += op_cases(fractional_max_pool(2), TYPICAL_SHAPES | CIFAR_SHAPES)
    cases += op_cases(fractional_max_pool(3), VIDEO_SHAPES)
    cases += op_cases(DROP_CONNECT, DROP_CONNECT_SHAPES, plain, dtypes=(torch.float32,))
    cases += op_cases(STOCHASTIC_DEPTH, TRANSFORMER_SHAPES, plain, dtypes=(torch.float32,))
    inductor_shapes = some(RESNET50_SHAPES, "32x64x56x56", "32x256x14x14")
    for op in (batch_norm("relu"), batch_norm("relu", residual=True), batch_norm("gelu")):
        cases += op_cases(under_inductor(op), inductor_shapes, dtypes=(torch.float32,))
    return cases + overhead_cases() + network_cases()


CASES: list[Case] = _cases()

QUICK = (
    "batch_norm_relu/*32x64x56x56/*/float32/*",
    "batch_norm_relu/*32x512x7x7/forward+backward/*",
    "batch_norm_relu/tiny*/*/float32/*",
    "batch_norm_add_relu/*32x256x14x14/forward+backward/*",
    "batch_norm_relu6/*32x192x28x28/forward+backward/float32/*",
    "batch_norm_relu_eval/*32x256x14x14/*/float32/*",
    "batch_norm_relu_max_pool/*/forward+backward/float32/*",
    "leaky_relu/*32x64x56x56/*/float32/*",
    "leaky_relu_inplace/mlp-1024x4096/*/float32/*",
    "gelu/mlp-1024x4096/*/float32/*",
    "batch_norm_relu_dropout/mlp-256x4096/*/float32/*",
    "dropout/mlp-256x4096/*/float32/*",
    "dropout/tiny*/*/float32/*",
    "fractional_max_pool2d_relu/cifar*/forward+backward/float32/*",
    "overhead/batch_norm_relu/*",
)
"""Patterns of the cases that run under --quick."""


def select(
    patterns: Iterable[str] = (),
    quick: bool = False,
    cases: Iterable[Case] = CASES,
    quick_patterns: tuple[str, ...] = QUICK,
) -> list[Case]:
    """The cases that match one of the patterns, or all if there are no patterns; with `quick`, only the quick ones."""
    patterns = tuple(patterns)
    if quick:
        cases = [case for case in cases if case.matches(*quick_patterns)]
    return [case for case in cases if not patterns or case.matches(*patterns)]
