"""The registry of what can be timed on a CUDA device, with batches as a GPU gets them in training."""

from collections.abc import Iterator
from dataclasses import replace
from math import prod

import torch

from fusedtricks import functional as fused_functional

from .batch_norm_ops import batch_norm, batch_norm_dropout
from .case import Case
from .cases import op_cases
from .dropout_ops import DROPOUT
from .elementwise_ops import activation
from .networks import NETWORKS, network_case
from .op import Op
from .shapes import TINY_SHAPES, Shapes, images

BATCH = 256
CONTIGUOUS, CHANNELS_LAST = "contiguous", "channels_last"

# For each op, the inputs (channels, height, width) of ResNet-50's 53 BatchNorm layers, and how many layers have them.
RESNET50_LAYERS: dict[str, dict[tuple[int, int, int], int]] = {
    "batch_norm_relu": {
        (64, 112, 112): 1,
        (64, 56, 56): 6,
        (128, 56, 56): 1,
        (128, 28, 28): 7,
        (256, 28, 28): 1,
        (256, 14, 14): 11,
        (512, 14, 14): 1,
        (512, 7, 7): 5,
    },
    "batch_norm_add_relu": {(256, 56, 56): 3, (512, 28, 28): 4, (1024, 14, 14): 6, (2048, 7, 7): 3},
    "batch_norm": {(256, 56, 56): 1, (512, 28, 28): 1, (1024, 14, 14): 1, (2048, 7, 7): 1},
}
RESNET50_OPS = {
    "batch_norm_relu": batch_norm("relu"),
    "batch_norm_add_relu": batch_norm("relu", residual=True),
    "batch_norm": batch_norm("identity"),
}


def layer_counts() -> dict[tuple[str, str], int]:
    """(op, case) -> how many layers of ResNet-50 the case stands for."""
    return {
        (op, name): count
        for op, layers in RESNET50_LAYERS.items()
        for name, count in zip(images("resnet50", BATCH, *layers), layers.values(), strict=True)
    }


# The goals for single shapes are set for these; the largest are several times the size of the caches.
TYPICAL = ((64, 56, 56), (256, 56, 56), (512, 28, 28), (256, 14, 14), (512, 7, 7))
TYPICAL_SHAPES = images("resnet50", BATCH, *TYPICAL)
LARGE_SHAPES = images("resnet50", BATCH, (64, 56, 56), (256, 56, 56))
SMALL_SHAPES = images("resnet50", 8, (64, 56, 56), (256, 14, 14), (512, 7, 7))
MOBILENETV2_SHAPES = images("mobilenetv2", BATCH, (96, 112, 112), (144, 56, 56), (384, 14, 14), (960, 7, 7))
ODD_SHAPES = images("odd", BATCH, (3, 225, 225), (100, 27, 27), (7, 55, 55))
FLAT_SHAPES: Shapes = {"mlp-65536x1024": (65536, 1024), "mlp-8192x4096": (8192, 4096), "mlp-1024x4096": (1024, 4096)}


def _network_cases() -> Iterator[Case]:
    """Training steps with bfloat16 autocast, which the dtype bfloat16 means for a network."""
    for name, shape in (
        ("resnet50", (BATCH, 3, 224, 224)),
        ("mobilenetv2", (BATCH, 3, 224, 224)),
        ("mlp", (8192, 4096)),
    ):
        layout = CHANNELS_LAST if len(shape) == 4 else CONTIGUOUS
        yield network_case(name, NETWORKS[name][0], shape, layout, torch.bfloat16)


def _op_cases() -> Iterator[Case]:
    both = (CONTIGUOUS, CHANNELS_LAST)

    def cases(op: Op, shapes: Shapes, layouts: tuple[str, ...] = both, *dtypes: torch.dtype) -> list[Case]:
        return op_cases(op, shapes, layouts, dtypes or (torch.bfloat16, torch.float32))

    relu, add_relu, leaky_relu = RESNET50_OPS["batch_norm_relu"], RESNET50_OPS["batch_norm_add_relu"], "leaky_relu"
    for name, layers in RESNET50_LAYERS.items():
        yield from cases(RESNET50_OPS[name], images("resnet50", BATCH, *layers), (CHANNELS_LAST,), torch.bfloat16)
    elsewhere = [shape for layers in RESNET50_LAYERS.values() for shape in layers]
    yield from cases(relu, images("resnet50", BATCH, *elsewhere), (CHANNELS_LAST,), torch.bfloat16)
    yield from cases(relu, TYPICAL_SHAPES)
    yield from cases(add_relu, LARGE_SHAPES)
    yield from cases(DROPOUT, LARGE_SHAPES)
    yield from cases(activation(leaky_relu), LARGE_SHAPES)
    yield from cases(relu, SMALL_SHAPES | ODD_SHAPES | FLAT_SHAPES | TINY_SHAPES)
    yield from cases(add_relu, SMALL_SHAPES)
    yield from cases(batch_norm("relu6"), MOBILENETV2_SHAPES, (CHANNELS_LAST,))
    yield from cases(batch_norm("relu", training=False), TYPICAL_SHAPES | TINY_SHAPES)
    yield from cases(batch_norm("silu"), TYPICAL_SHAPES, (CHANNELS_LAST,), torch.bfloat16)
    yield from cases(DROPOUT, SMALL_SHAPES | ODD_SHAPES | FLAT_SHAPES | TINY_SHAPES)
    yield from cases(batch_norm_dropout("relu"), TYPICAL_SHAPES | FLAT_SHAPES)
    yield from cases(activation(leaky_relu, inplace=True), LARGE_SHAPES)
    yield from cases(activation(leaky_relu), FLAT_SHAPES | TINY_SHAPES)
    for act in fused_functional.ACTIVATIONS:
        if act not in ("identity", leaky_relu):
            yield from cases(activation(act), FLAT_SHAPES, (CONTIGUOUS,), torch.bfloat16)


def _cases() -> list[Case]:
    """The cases that the goals need come first, so that a run that is cut short has them."""
    every = {case.id: replace(case, device="cuda") for case in (*_op_cases(), *_network_cases())}
    return list(every.values())


CASES: list[Case] = _cases()

QUICK = (
    "batch_norm_relu/resnet50-256x64x56x56/*/bfloat16/*",
    "batch_norm_relu/resnet50-256x256x14x14/*/bfloat16/channels_last",
    "batch_norm_add_relu/resnet50-256x512x28x28/*/bfloat16/channels_last",
    "batch_norm_relu/tiny*/*/float32/*",
    "batch_norm_relu_eval/*256x256x14x14/*/bfloat16/*",
    "leaky_relu/resnet50-256x64x56x56/*/bfloat16/*",
    "leaky_relu_inplace/resnet50-256x64x56x56/*/bfloat16/*",
    "gelu/mlp-8192x4096/*",
    "dropout/resnet50-256x64x56x56/*/bfloat16/*",
    "dropout/tiny*/*/float32/*",
)
"""Patterns of the cases that run under --quick."""


def tensor_bytes(shape: tuple[int, ...] | list[int], dtype: str) -> int:
    """The size of a tensor of this shape and dtype."""
    return prod(shape) * int(getattr(torch, dtype).itemsize)
