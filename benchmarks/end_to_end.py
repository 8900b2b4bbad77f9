"""Training steps of whole networks, stock layers against fused ones."""

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fusedtricks
from fusedtricks.stock import FUSED, STOCK, Layers, bytes_kept_for_backward

from .case import Case
from .check import Mismatch
from .measure import Side
from .workload import Workload

CHECKED_SAMPLES = 4
FACTOR, SLACK = 3, 1e-3


@dataclass(frozen=True)
class Network:
    """A network that is written for either set of layers, and its number of classes."""

    make: Callable[[Layers], nn.Module]
    classes: int

    def pair(self) -> tuple[nn.Module, nn.Module, dict[str, Any]]:
        """The network of stock and of fused layers with the same weights, and further columns of the row."""
        stock, fused = self.make(STOCK), self.make(FUSED)
        fused.load_state_dict(stock.state_dict())
        return stock, fused, {}


@dataclass(frozen=True)
class Family:
    """A network of stock layers, which `fusedtricks.fuse` fuses, and its number of classes."""

    make: Callable[[], nn.Module]
    classes: int

    def pair(self) -> tuple[nn.Module, nn.Module, dict[str, Any]]:
        """The network, its fused copy, and the number of chains found in it."""
        stock = self.make().train()
        fused = fusedtricks.fuse(stock)
        return stock, fused, {"chains": len(fusedtricks.report(fused).chains)}


def build_step(network: Network | Family, case: Case) -> Workload:
    """Makes both networks with the same weights, a batch and its labels."""
    torch.manual_seed(0)
    stock, fused, facts = network.pair()
    for model in (stock, fused):
        model.to(device=case.device, memory_format=case.memory_format)  # type: ignore[call-overload]
    x = torch.randn(case.shape, device=case.device).contiguous(memory_format=case.memory_format)
    labels = torch.randint(network.classes, case.shape[:1], device=case.device)
    arithmetic = partial(_arithmetic, case)

    def side(model: Callable[[Tensor], Tensor] | nn.Module) -> Side:
        return Side(_step(model, x, labels, arithmetic), host_counts=True)

    def compiled() -> Side:
        torch.compiler.reset()
        return side(torch.compile(stock, dynamic=False))

    def bytes_kept() -> tuple[int, int]:
        with arithmetic():
            return bytes_kept_for_backward(stock, x), bytes_kept_for_backward(fused, x)

    def bytes_at_rest() -> int:
        for model in (stock, fused):
            model.zero_grad()
        parameters = sum(parameter.nbytes for parameter in stock.parameters())
        return 2 * parameters + sum(buffer.nbytes for buffer in stock.buffers()) + x.nbytes + labels.nbytes

    return Workload(
        sides={"eager": side(stock), "fused": side(fused)},
        compiled=compiled,
        check=partial(_check, stock, fused, x[:CHECKED_SAMPLES], labels[:CHECKED_SAMPLES], arithmetic, case.dtype),
        bytes_kept=bytes_kept,
        elements=x.numel(),
        min_bytes=None,
        min_rounds=5,
        max_rounds=9 if case.device == "cpu" else 25,
        bytes_at_rest=bytes_at_rest,
        facts=facts,
    )


def _arithmetic(case: Case) -> AbstractContextManager[object]:
    """Autocast if the case has a lower precision. Weights and batch are always float32."""
    if case.dtype == torch.float32:
        return nullcontext()
    return torch.autocast(case.device, dtype=case.dtype)


Arithmetic = Callable[[], AbstractContextManager[object]]
Criterion = Callable[[Tensor, Tensor], Tensor]
Gradients = tuple[Tensor, Sequence[Tensor]]
Errors = tuple[float, float]


def _step(
    model: Callable[[Tensor], Tensor] | nn.Module, x: Tensor, labels: Tensor, arithmetic: Arithmetic
) -> Callable[[], None]:
    """A training step: clear the gradients, forward, loss, backward, SGD with momentum."""
    assert isinstance(model, nn.Module)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        with arithmetic():
            loss = F.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()

    return step


def _check(
    stock: nn.Module, fused: nn.Module, x: Tensor, labels: Tensor, arithmetic: Arithmetic, dtype: torch.dtype
) -> None:
    """Compares loss and gradients at the initial weights, without dropout, with those of stock in float64."""
    exact = gradients(copy.deepcopy(stock).double(), x.double(), labels)
    errors, fused_errors = (relative_errors(gradients(model, x, labels, arithmetic), exact) for model in (stock, fused))
    require_agreement(fused_errors, errors, dtype)


def require_agreement(errors: Errors, stock_errors: Errors, dtype: torch.dtype, slack: float = SLACK) -> None:
    """Raises `Mismatch` if a side is further off than stock, beyond a tolerance.

    Rounding that moves the input of a ReLU across zero changes gradients, and there are many layers: stock itself is
    off by per cents, and a side may be off by FACTOR times as much. If stock happens to be exact, it may be off by
    the slack, or by one rounding of the outputs to `dtype`.
    """
    for what, error, stock_error in zip(("loss", "gradients"), errors, stock_errors, strict=True):
        if not error <= FACTOR * stock_error + max(slack, torch.finfo(dtype).eps):
            raise Mismatch(f"{what} off by {error:.1e} of their norm, stock's by {stock_error:.1e}")


def relative_errors(values: Gradients, exact: Gradients) -> Errors:
    """The distances of the loss and of all gradients together, relative to the norms of the exact ones."""
    (loss, gradients), (exact_loss, exact_gradients) = values, exact
    return _relative([loss], [exact_loss]), _relative(gradients, exact_gradients)


def _relative(values: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    distances = [a.to(b, copy=True).sub_(b).norm().item() for a, b in zip(values, exact, strict=True)]
    return math.hypot(*distances) / math.hypot(*(b.norm().item() for b in exact))


def gradients(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    arithmetic: Arithmetic = nullcontext,
    criterion: Criterion = F.cross_entropy,
) -> Gradients:
    """The loss and all gradients, without dropout. The model stays as it is."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    dropouts = [(module, module.p) for module in model.modules() if isinstance(module, nn.Dropout)]
    for module, _ in dropouts:
        module.p = 0.0
    with arithmetic():
        loss = criterion(model(x), target)
    result = torch.autograd.grad(loss, list(model.parameters()))
    for module, p in dropouts:
        module.p = p
    model.load_state_dict(buffers, strict=False)
    return loss.detach(), result
