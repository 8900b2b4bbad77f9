"""Whether a side computes what it must before its memory is measured."""

import copy

import torch
from torch import Tensor, nn

from .check import Mismatch
from .end_to_end import Criterion, gradients, relative_errors, require_agreement
from .memory_sides import FUSED, RECOMPUTE, STOCK

SAMPLES = 2
SLACK = 1e-2
"""Where stock is exact: in four layers, rounding that moves one value across zero changes gradients by a thousandth."""


def find_wrong(networks: dict[str, nn.Module], x: Tensor, target: Tensor, criterion: Criterion) -> dict[str, str]:
    """What is wrong, by side: gradients too far from stock's in float64, or other bits than fused's in recompute."""
    x, target = x[:SAMPLES], target[:SAMPLES]
    return _other_gradients(networks, x, target, criterion) | _other_bits(networks, x, target, criterion)


def _other_gradients(networks: dict[str, nn.Module], x: Tensor, target: Tensor, criterion: Criterion) -> dict[str, str]:
    others = dict(networks)
    stock = others.pop(STOCK)
    weights = target.double() if target.is_floating_point() else target
    exact = gradients(copy.deepcopy(stock).double(), x.double(), weights, criterion=criterion)
    stock_errors = relative_errors(gradients(stock, x, target, criterion=criterion), exact)
    wrong = {}
    for name, network in others.items():
        errors = relative_errors(gradients(network, x, target, criterion=criterion), exact)
        try:
            require_agreement(errors, stock_errors, x.dtype, SLACK)
        except Mismatch as mismatch:
            wrong[name] = str(mismatch)
    return wrong


def _other_bits(networks: dict[str, nn.Module], x: Tensor, target: Tensor, criterion: Criterion) -> dict[str, str]:
    fused = _step(networks[FUSED], x, target, criterion)
    wrong = {}
    for name, network in networks.items():
        if name.startswith(RECOMPUTE):
            values = _step(network, x, target, criterion)
            differing = [key for key, value in values.items() if not torch.equal(value, fused[key])]
            if differing:
                wrong[name] = f"not the bits of fused: {', '.join(differing)}"
    return wrong


def _step(network: nn.Module, x: Tensor, target: Tensor, criterion: Criterion) -> dict[str, Tensor]:
    """The loss, and all gradients and buffers after a step with dropout. The network stays as it is."""
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    parameters = dict(network.named_parameters())
    torch.manual_seed(0)
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        loss = criterion(network(x), target)
        gradients = torch.autograd.grad(loss, list(parameters.values()))
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    network.load_state_dict(before, strict=False)
    return {"loss": loss.detach(), **dict(zip(parameters, gradients, strict=True)), **buffers}
