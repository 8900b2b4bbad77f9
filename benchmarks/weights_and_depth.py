"""DropConnect and stochastic depth: what they replace, ours, and the reference."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusedtricks import eager
from fusedtricks import nn as fused_nn
from fusedtricks.nn.stochastic_depth import kept_samples

from .op import Op, Pair, Shape

DROPPED_WEIGHTS, DROPPED_SAMPLES, HEAD_WIDTH = 0.5, 0.4, 64


class StockDropConnect(nn.Linear):
    """A linear layer whose weight goes through stock dropout."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, F.dropout(self.weight, DROPPED_WEIGHTS), self.bias)


def _make_drop_connect(shape: Shape) -> Pair:
    stock = StockDropConnect(shape[1], shape[1])
    fused = fused_nn.DropConnectLinear(shape[1], shape[1], p=DROPPED_WEIGHTS)
    fused.load_state_dict(stock.state_dict())
    return stock, fused


def _drop_connect_reference(model: Any, seed: int, x: Tensor) -> Tensor:
    return eager.drop_connect_linear(x, model.weight, model.bias, DROPPED_WEIGHTS, seed=seed)


DROP_CONNECT = Op("drop_connect", _make_drop_connect, _drop_connect_reference, draws=True)


class MaskedDepth(nn.Module):
    """A residual block that runs on all samples, and is multiplied by zero for some."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, input: Tensor) -> Tensor:
        branch = self.block(input)
        shape = (len(branch), *[1] * (branch.dim() - 1))
        kept = 1 - DROPPED_SAMPLES
        return input + branch * branch.new_empty(shape).bernoulli_(kept).div_(kept)


class Attention(nn.Module):
    """LayerNorm and self-attention, as a residual block of a transformer has them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, width // HEAD_WIDTH, batch_first=True)

    def forward(self, input: Tensor) -> Tensor:
        x = self.norm(input)
        return self.attention(x, x, x, need_weights=False)[0]


def transformer_block(width: int, depth: Callable[[nn.Module], nn.Module]) -> nn.Sequential:
    """Attention, then two linear layers, each with its own stochastic depth."""
    layers = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
    return nn.Sequential(depth(Attention(width)), depth(layers))


def _make_depth(shape: Shape) -> Pair:
    stock = transformer_block(shape[-1], MaskedDepth)
    fused = transformer_block(shape[-1], lambda block: fused_nn.StochasticDepth(block, DROPPED_SAMPLES, "skip"))
    fused.load_state_dict(stock.state_dict())
    return stock, fused


def _depth_reference(model: Any, seed: int, x: Tensor) -> Tensor:
    """Each block on the samples that torch.randperm draws from the same state of the generator."""
    kept = kept_samples(len(x), DROPPED_SAMPLES)
    for layer in model:
        index = torch.randperm(len(x), device=x.device)[:kept]
        branch = layer.block(eager.select_samples(x, index))
        x = eager.add_samples(x, branch, index, len(x) / kept)
    return x


STOCHASTIC_DEPTH = Op("stochastic_depth_skip", _make_depth, _depth_reference, draws=True)
