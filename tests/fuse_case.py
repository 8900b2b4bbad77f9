"""How fused models are compared with stock ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import fusedtricks
from fusedtricks.fusing.running.masks import stock_dropout

STEPS = 3


def image(*size: int) -> Tensor:
    return torch.randn(size or (3, 4, 8, 7), dtype=torch.float64)


def train(model: nn.Module, inputs: list[Tensor], call: Callable[[nn.Module, Tensor], Any] | None = None) -> list[Any]:
    """Results, gradients and state of some training steps, then a result in evaluation and one without gradients.

    Uses stock dropout's masks, drawn from one seed.
    """
    torch.manual_seed(0)
    with stock_dropout():
        return _train(model, inputs, call)


def _train(model: nn.Module, inputs: list[Tensor], call: Callable[[nn.Module, Tensor], Any] | None) -> list[Any]:
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    record: list[Any] = []
    for x in inputs:
        x = x.detach().clone().requires_grad_()
        y = call(model, x) if call else model(x)
        optimizer.zero_grad()
        y.square().mean().backward()
        record += [y.detach(), x.grad, *(p.grad for p in model.parameters() if p.grad is not None)]
        optimizer.step()
    modes = [(module, module.training) for module in model.modules()]
    with torch.no_grad():
        record += [call(model, inputs[0]) if call else model(inputs[0])]
        record += [(call(model.eval(), inputs[0]) if call else model.eval()(inputs[0]))]
    for module, mode in modes:
        module.training = mode
    return [*record, *model.state_dict().values()]


def assert_same_training(fused: nn.Module, stock: nn.Module, **kwargs: Any) -> None:
    inputs = [image() for _ in range(STEPS)]
    torch.testing.assert_close(train(fused, inputs, **kwargs), train(stock, inputs, **kwargs), rtol=1e-9, atol=1e-9)


def chains(model: nn.Module) -> int:
    return len(fusedtricks.report(model).chains)
