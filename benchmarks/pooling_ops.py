"""Fractional max-pooling: stock's modules, ours, and the reference."""

from typing import Any

from torch import Tensor, nn

from fusedtricks import eager
from fusedtricks import nn as fused_nn

from .op import Op, Pair, Shape


def fractional_max_pool(rank: int, act: str = "relu", kernel: int = 2, ratio: float = 0.7) -> Op:
    """activation(fractional max-pooling).

    The windows of 2 x 2 and the ratio of about the square root of 1/2 are those of Graham's first network.
    """

    def make(shape: Shape) -> Pair:
        pool = getattr(nn, f"FractionalMaxPool{rank}d")(kernel, output_ratio=ratio)
        stock = nn.Sequential(pool, {"relu": nn.ReLU, "elu": nn.ELU}[act]())
        return stock, getattr(fused_nn, f"FractionalMaxPool{rank}d")(kernel, output_ratio=ratio, act=act)

    def pooled(shape: Shape) -> Shape:
        return (*shape[:2], *(int(length * ratio) for length in shape[2:]))

    def reference(model: Any, seed: int, x: Tensor) -> Tensor:
        size = pooled(tuple(x.shape))[2:]
        return eager.fractional_max_pool(x, (kernel,) * rank, size, seed=seed, act=act)[0]

    return Op(
        f"fractional_max_pool{rank}d_{act}",
        make,
        reference,
        draws=True,
        output_shape=pooled,
        forward_tensors=1,
        backward_tensors=1,
    )
