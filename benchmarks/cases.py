"""The registry: every case that can be timed."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusedtricks import functional as fused_functional
from fusedtricks import nn as fused_nn
from fusedtricks.demo.layers import StockNormAct1d, StockNormAct2d

from .case import Case, shape_text
from .end_to_end import Family, Network, build_step
from .families import CLASSES, classifier
from .masks import ALPHA_DROPOUT, DROP_PATH, act_dropout, channel_dropout
from .models import DropoutMLP, MobileNetV2, ResNet50
from .weights_and_depth import DROP_CONNECT, STOCHASTIC_DEPTH
from .workload import Op, build_op, check_batch_norm_dropout, check_dropout, check_pool

Shape = tuple[int, ...]
Shapes = dict[str, Shape]

# (channels, height, width) of each different BatchNorm input of the network, from its input to its output.
RESNET50 = (
    (64, 112, 112),
    (64, 56, 56),
    (256, 56, 56),
    (128, 56, 56),
    (128, 28, 28),
    (512, 28, 28),
    (256, 28, 28),
    (256, 14, 14),
    (1024, 14, 14),
    (512, 14, 14),
    (512, 7, 7),
    (2048, 7, 7),
)
MOBILENETV2_EXPANDED = (
    (32, 112, 112),
    (96, 112, 112),
    (144, 56, 56),
    (192, 28, 28),
    (384, 14, 14),
    (960, 7, 7),
    (1280, 7, 7),
)
RESNET18 = [64, 128, 256, 512]
REGNET = [48, 120, 336, 888]  # RegNetY-1.6GF
MOBILENETV2_PROJECTED = ((24, 56, 56), (32, 28, 28), (96, 14, 14), (320, 7, 7))

RESNET50_SHAPES: Shapes = {f"resnet50-{shape_text((32, *s))}": (32, *s) for s in RESNET50}
EXPANDED_SHAPES: Shapes = {f"mobilenetv2-{shape_text((32, *s))}": (32, *s) for s in MOBILENETV2_EXPANDED}
PROJECTED_SHAPES: Shapes = {f"mobilenetv2-{shape_text((32, *s))}": (32, *s) for s in MOBILENETV2_PROJECTED}
VIDEO_SHAPES: Shapes = {"video-4x16x16x56x56": (4, 16, 16, 56, 56)}
CIFAR_SHAPES: Shapes = {"cifar-128x64x32x32": (128, 64, 32, 32)}
MLP_SHAPES: Shapes = {"mlp-1024x4096": (1024, 4096), "mlp-256x4096": (256, 4096)}
TINY_SHAPES: Shapes = {"tiny-64x128": (64, 128)}
VIT_SHAPES: Shapes = {"vit-64x197x384": (64, 197, 384)}
DROP_CONNECT_SHAPES: Shapes = {"linear-64x1024": (64, 1024)}
TRANSFORMER_SHAPES: Shapes = {"vit-small-16x197x384": (16, 197, 384), "vit-base-8x197x768": (8, 197, 768)}


def _some(shapes: Shapes, *parts: str) -> Shapes:
    return {name: shape for name, shape in shapes.items() if name.endswith(parts)}


TYPICAL_SHAPES = _some(RESNET50_SHAPES, "32x64x56x56", "32x512x28x28", "32x256x14x14", "32x512x7x7")
STEM_SHAPES = _some(RESNET50_SHAPES, "32x64x112x112")
LARGEST_SHAPES = _some(RESNET50_SHAPES, "32x256x56x56")


def batch_norm(act: str, residual: bool = False, training: bool = True) -> Op:
    """activation(BatchNorm(x) [+ residual]), of stock layers as torchvision uses them and of the fused."""

    def make(shape: Shape) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
        flat = len(shape) == 2
        stock = (StockNormAct1d if flat else StockNormAct2d)(shape[1], act=act)
        fused = (fused_nn.BatchNormAct1d if flat else fused_nn.BatchNormAct2d)(shape[1], act=act)
        nn.init.uniform_(stock.weight, 0.5, 1.5)
        nn.init.normal_(stock.bias, std=0.1)
        fused.load_state_dict(stock.state_dict())
        for module in (stock, fused):
            module.train(training).requires_grad_(training)
        return stock, fused

    names = ["batch_norm", *["add"] * residual, *[act] * (act != "identity"), *["eval"] * (not training)]
    return Op(
        "_".join(names),
        make,
        forward_tensors=3 if residual else 2,
        backward_tensors=5 if residual else 3,
        inputs=2 if residual else 1,
        training=training,
    )


class StockStem(StockNormAct2d):
    """BatchNorm, activation and max-pooling of stock layers, with the BatchNorm's state."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return F.max_pool2d(super().forward(x), 3, 2, 1)


def stem(training: bool = True) -> Op:
    """max_pool2d(relu(BatchNorm(x))) as a residual network begins, of stock layers and of the fused one."""

    def make(shape: Shape) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
        stock, fused = StockStem(shape[1], act="relu"), fused_nn.BatchNormActMaxPool2d(shape[1], 3, 2, 1)
        nn.init.uniform_(stock.weight, 0.5, 1.5)
        nn.init.normal_(stock.bias, std=0.1)
        fused.load_state_dict(stock.state_dict())
        for module in (stock, fused):
            module.train(training).requires_grad_(training)
        return stock, fused

    def halved(shape: Shape) -> Shape:
        return (*shape[:2], *((size + 1) // 2 for size in shape[2:]))

    # Besides x and dx, tensors of a quarter of their size.
    name = "batch_norm_relu_max_pool" + "_eval" * (not training)
    return Op(name, make, forward_tensors=1, backward_tensors=2, training=training, output_shape=halved)


class StockNormActDropout1d(StockNormAct1d):
    """Stock BatchNorm and activation, then stock dropout."""

    def __init__(self, num_features: int, act: str, p: float) -> None:
        super().__init__(num_features, act=act)
        self.dropout = nn.Dropout(p)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return self.dropout(super().forward(x, residual))


class StockNormActDropout2d(StockNormActDropout1d, StockNormAct2d):
    """The same for images."""


def batch_norm_dropout(act: str, p: float = 0.5) -> Op:
    """dropout(activation(BatchNorm(x))), of stock layers and of the fused."""

    def make(shape: Shape) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
        flat = len(shape) == 2
        stock = (StockNormActDropout1d if flat else StockNormActDropout2d)(shape[1], act, p)
        fused = (fused_nn.BatchNormAct1d if flat else fused_nn.BatchNormAct2d)(shape[1], act=act, p=p)
        nn.init.uniform_(stock.weight, 0.5, 1.5)
        nn.init.normal_(stock.bias, std=0.1)
        fused.load_state_dict(stock.state_dict())
        return stock, fused

    return Op(f"batch_norm_{act}_dropout", make, check=check_batch_norm_dropout)


def activation(name: str, inplace: bool = False) -> Op:
    """The activation alone, as the function of the stock name or of the fused one."""

    def make(shape: Shape) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
        eager, fused = _function(F, name), _function(fused_functional, name)
        return (partial(eager, inplace=True), partial(fused, inplace=True)) if inplace else (eager, fused)

    return Op(f"{name}_inplace" if inplace else name, make, inplace=inplace)


def _function(module: Any, name: str) -> Callable[..., Tensor]:
    return partial(module.gelu, approximate="tanh") if name == "gelu_tanh" else getattr(module, name)


DROPOUT = Op("dropout", lambda shape: (F.dropout, fused_functional.dropout), backward_tensors=2, check=check_dropout)


def fractional_max_pool(rank: int, act: str = "relu", kernel: int = 2, ratio: float = 0.7) -> Op:
    """activation(fractional max-pooling), of the stock modules and of the fused one. Graham's first network has these
    windows of 2 x 2 and divides lengths by about the square root of 2."""

    def make(shape: Shape) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
        pool = getattr(nn, f"FractionalMaxPool{rank}d")(kernel, output_ratio=ratio)
        stock = nn.Sequential(pool, {"relu": nn.ReLU, "elu": nn.ELU}[act]())
        return stock, getattr(fused_nn, f"FractionalMaxPool{rank}d")(kernel, output_ratio=ratio, act=act)

    return Op(
        f"fractional_max_pool{rank}d_{act}",
        make,
        forward_tensors=1,
        backward_tensors=1,
        check=check_pool,
        output_shape=lambda shape: (*shape[:2], *(int(length * ratio) for length in shape[2:])),
    )


NETWORKS: dict[str, tuple[Network, Shape]] = {
    "resnet50": (Network(ResNet50, classes=1000), (16, 3, 224, 224)),
    "mobilenetv2": (Network(MobileNetV2, classes=1000), (32, 3, 224, 224)),
    "mlp": (Network(DropoutMLP, classes=10), (256, 4096)),
}

# Hugging Face's, of stock layers: default configurations, ResNet-50 the first.
FAMILIES: dict[str, tuple[Family, Shape]] = {
    name: (Family(partial(classifier, kind, **settings), CLASSES), shape)
    for name, kind, settings, shape in (
        ("resnet50", "ResNet", {}, (8, 3, 224, 224)),
        ("resnet18", "ResNet", {"layer_type": "basic", "depths": [2] * 4, "hidden_sizes": RESNET18}, (16, 3, 224, 224)),
        ("regnet-y", "RegNet", {"depths": [2, 5, 14, 2], "hidden_sizes": REGNET, "groups_width": 24}, (8, 3, 224, 224)),
        ("mobilenet-v1", "MobileNetV1", {}, (16, 3, 224, 224)),
        ("mobilenet-v2", "MobileNetV2", {}, (16, 3, 224, 224)),
    )
}


def under_inductor(op: Op) -> Op:
    """An op as Inductor runs it: "eager" is its own code of the stock layers, "fused" our operator, called by it."""

    def make(shape: Shape) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
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
    """The op at each shape in each dtype, each layout that the shape has, each direction."""
    return [
        Case(op.name, name, shape, dtype, layout, direction, partial(build_op, op))
        for name, shape in shapes.items()
        for dtype in dtypes
        for layout in layouts
        if layout == "contiguous" or len(shape) == 4
        for direction in ("forward", "forward+backward")
        if op.training or direction == "forward"
    ]


def network_case(
    name: str, network: Network | Family, shape: Shape, layout: str, dtype: torch.dtype = torch.float32
) -> Case:
    """A training step of the network: written with fused layers, or fused by `fusedtricks.fuse`."""
    op = "fuse" if isinstance(network, Family) else "end_to_end"
    return Case(op, name, shape, dtype, layout, "training step", partial(build_step, network))


def _network_cases() -> list[Case]:
    networks: list[tuple[str, tuple[Network | Family, Shape]]] = [*NETWORKS.items(), *FAMILIES.items()]
    return [
        network_case(name, network, shape, layout)
        for name, (network, shape) in networks
        for layout in ("contiguous", "channels_last")
        if layout == "contiguous" or len(shape) == 4
    ]


def _cases() -> list[Case]:
    plain = ("contiguous",)
    elementwise_shapes = _some(RESNET50_SHAPES, "32x64x56x56") | _some(MLP_SHAPES, "1024x4096") | TINY_SHAPES
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
    tail_shapes = _some(RESNET50_SHAPES, "32x64x56x56") | _some(MLP_SHAPES, "256x4096")
    for act in ("relu", "gelu"):
        cases += op_cases(act_dropout(act), tail_shapes)
    cases += op_cases(channel_dropout("dropout2d"), TYPICAL_SHAPES)
    cases += op_cases(ALPHA_DROPOUT, tail_shapes)
    cases += op_cases(DROP_PATH, VIT_SHAPES | _some(RESNET50_SHAPES, "32x64x56x56"))
    cases += op_cases(fractional_max_pool(2), TYPICAL_SHAPES | CIFAR_SHAPES)
    cases += op_cases(fractional_max_pool(3), VIDEO_SHAPES)
    cases += op_cases(DROP_CONNECT, DROP_CONNECT_SHAPES, plain, dtypes=(torch.float32,))
    cases += op_cases(STOCHASTIC_DEPTH, TRANSFORMER_SHAPES, plain, dtypes=(torch.float32,))
    inductor_shapes = _some(RESNET50_SHAPES, "32x64x56x56", "32x256x14x14")
    for op in (batch_norm("relu"), batch_norm("relu", residual=True), batch_norm("gelu")):
        cases += op_cases(under_inductor(op), inductor_shapes, dtypes=(torch.float32,))
    return cases + _network_cases()


CASES: list[Case] = _cases()

# Patterns of the cases that --quick leaves.
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
)


def select(
    patterns: Iterable[str] = (),
    quick: bool = False,
    cases: Iterable[Case] = CASES,
    quick_patterns: tuple[str, ...] = QUICK,
) -> list[Case]:
    """The cases that match any of the patterns (all where there are none), of the quick ones if asked."""
    patterns = tuple(patterns)
    if quick:
        cases = [case for case in cases if case.matches(*quick_patterns)]
    return [case for case in cases if not patterns or case.matches(*patterns)]
