"""The ways to run one network whose memory is compared. They share its weights, and each has its own buffers."""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._functorch import config
from torch._inductor.compile_fx import compile_fx
from torch.utils.checkpoint import checkpoint

import fusedtricks

from .plain_networks import blocks

STOCK, FUSED, RECOMPUTE = "stock", "fused", "recompute"
BUDGET = 0.5


def sides(stock: nn.Module, depths: Sequence[int | None], compiled: bool) -> dict[str, nn.Module]:
    """The network as it is, fused, recomputing through so many residual joints, in checkpoints and compiled."""
    result = {STOCK: stock, FUSED: _fused(stock), RECOMPUTE: _fused(stock, recompute=True)}
    for depth in depths:
        result[f"{RECOMPUTE}, depth {depth}"] = _fused(stock, recompute=fusedtricks.recompute(depth=depth))
    result["checkpoint"] = _checkpointed(stock)
    if compiled:
        torch.compiler.reset()
        result["compiled"] = _compiled(stock, "inductor")
        result[f"compiled, budget {BUDGET}"] = _compiled(stock, _within_budget)
    return result


def _copy(network: nn.Module) -> nn.Module:
    return copy.deepcopy(network, {id(parameter): parameter for parameter in network.parameters()})


def _fused(stock: nn.Module, **settings: Any) -> nn.Module:
    return fusedtricks.fuse(_copy(stock), inplace=True, **settings)


def _checkpointed(stock: nn.Module) -> nn.Module:
    """Each block in a checkpoint. Its running statistics are updated once more in the backward."""
    network = _copy(stock)
    for block in blocks(network):
        block.forward = partial(_in_checkpoint, block.forward)
    return network


def _in_checkpoint(forward: Callable[..., Tensor], x: Tensor | list[Tensor]) -> Tensor:
    """A list as it is now: a dense block appends to it."""
    return checkpoint(forward, list(x) if isinstance(x, list) else x, use_reentrant=False)


def _compiled(stock: nn.Module, backend: Any) -> nn.Module:
    result = torch.compile(_copy(stock), dynamic=False, backend=backend)
    assert isinstance(result, nn.Module)
    return result


def _within_budget(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
    """Inductor, which may keep half of the activations. A backend of its own shares no compiled code with others."""
    with config.patch(activation_memory_budget=BUDGET):
        return compile_fx(graph, inputs)
