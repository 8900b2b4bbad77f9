"""DropConnect and stochastic depth beside what they replace, and the check that each draws what it says."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusedtricks import functional as fused_functional
from fusedtricks import nn as fused_nn
from fusedtricks.nn.stochastic_depth import kept_samples

from .workload import TOLERANCES, Mismatch, Op

Pair = tuple[Callable[..., Tensor], Callable[..., Tensor]]
DROPPED_WEIGHTS, DROPPED_SAMPLES, HEAD_WIDTH = 0.5, 0.4, 64


class StockDropConnect(nn.Linear):
    """A linear layer of a weight that stock dropout dropped."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, F.dropout(self.weight, DROPPED_WEIGHTS), self.bias)


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


def _make_drop_connect(shape: tuple[int, ...]) -> Pair:
    stock = StockDropConnect(shape[1], shape[1])
    fused = fused_nn.DropConnectLinear(shape[1], shape[1], p=DROPPED_WEIGHTS)
    fused.load_state_dict(stock.state_dict())
    return stock, fused


def _make_depth(shape: tuple[int, ...]) -> Pair:
    stock = transformer_block(shape[-1], MaskedDepth)
    fused = transformer_block(shape[-1], lambda block: fused_nn.StochasticDepth(block, DROPPED_SAMPLES, "skip"))
    fused.load_state_dict(stock.state_dict())
    return stock, fused


def check_drop_connect(
    fused: Callable[..., Tensor], _: Callable[..., Tensor], inputs: list[Tensor], grad_output: Tensor | None
) -> None:
    """The layer of the weight that our dropout drops by the same state of the generator."""
    assert isinstance(fused, nn.Linear)

    def composed(x: Tensor) -> Tensor:
        return F.linear(x, fused_functional.dropout(fused.weight, DROPPED_WEIGHTS), fused.bias)

    _compare(fused, composed, inputs[0], grad_output)


def check_depth(
    fused: Callable[..., Tensor], _: Callable[..., Tensor], inputs: list[Tensor], grad_output: Tensor | None
) -> None:
    """Each block on the samples that torch.randperm chooses by the same state of the generator."""
    assert isinstance(fused, nn.Sequential)

    def composed(x: Tensor) -> Tensor:
        kept = kept_samples(len(x), DROPPED_SAMPLES)
        for layer in fused:
            assert isinstance(layer, fused_nn.StochasticDepth)
            index = torch.randperm(len(x), device=x.device)[:kept]
            x = x.index_add(0, index, layer.block(x[index]), alpha=len(x) / kept)
        return x

    _compare(fused, composed, inputs[0], grad_output)


def _compare(fused: nn.Module, composed: Callable[[Tensor], Tensor], x: Tensor, grad_output: Tensor | None) -> None:
    results = []
    for function in (fused, composed):
        torch.manual_seed(1)
        leaves = [x.detach().clone().requires_grad_(), *fused.parameters()]
        output = function(leaves[0])
        gradients = torch.autograd.grad(output, leaves, grad_output) if grad_output is not None else ()
        results.append([output.detach(), *gradients])
    for i, (actual, expected) in enumerate(zip(*results, strict=True)):
        error = ((actual - expected).norm() / expected.norm()).item()
        if not error <= TOLERANCES[x.dtype]:
            raise Mismatch(f"{'output' if i == 0 else f'gradient {i - 1}'}: off by {error:.1e} of its norm")


DROP_CONNECT = Op("drop_connect", _make_drop_connect, check=check_drop_connect)
STOCHASTIC_DEPTH = Op("stochastic_depth_skip", _make_depth, check=check_depth)
