"""Turns a case of a single op into what can be checked and timed."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from fusedtricks import nn as fused_nn
from fusedtricks.demo.layers import bytes_kept_for_backward

from .case import Case
from .measure import Side

# Largest error of an element, relative to 1 + its size, that passes.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 2e-2}


# (fused callable, eager callable, inputs, grad_output or None) -> raises Mismatch
Check = Callable[[Callable[..., Tensor], Callable[..., Tensor], list[Tensor], Tensor | None], None]


class Mismatch(Exception):
    """The fused side of a case gives other values than it must; the case is not timed."""


@dataclass(frozen=True)
class Workload:
    """A case, built.

    Attributes:
        sides: "eager" and "fused", and "copy": `Tensor.copy_` of the input, where the case has one.
        compiled: makes the side of torch.compile on the eager code.
        check: raises Mismatch if the fused side is wrong.
        bytes_kept: by eager and by fused, for backward.
        elements: of the input.
        min_bytes: that the op moves at least (each tensor read or written once); None for a network.
        min_rounds: to measure; as many as fit the time are measured, but not fewer.
        max_rounds: to measure at most.
        bytes_at_rest: frees what the last call left behind; bytes that one side alone holds between calls.
        facts: what else the row of the case is to say.
    """

    sides: dict[str, Side]
    compiled: Callable[[], Side]
    check: Callable[[], None]
    bytes_kept: Callable[[], tuple[int, int]]
    elements: int
    min_bytes: int | None
    min_rounds: int = 9
    max_rounds: int = 25
    bytes_at_rest: Callable[[], int] = lambda: 0
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Op:
    """An op of the registry.

    Attributes:
        name: of the op.
        make: input shape -> the eager and the fused callable.
        forward_tensors: how many tensors of the input's size forward reads and writes at least.
        backward_tensors: the same for backward.
        inputs: how many tensors of the same shape it takes.
        inplace: whether it overwrites its input.
        training: whether its inputs and parameters need gradients.
        check: what the fused callable's values must pass; by default, that they are eager's.
        output_shape: input shape -> that of the result.
    """

    name: str
    make: Callable[[tuple[int, ...]], tuple[Callable[..., Tensor], Callable[..., Tensor]]]
    forward_tensors: int = 2
    backward_tensors: int = 3
    inputs: int = 1
    inplace: bool = False
    training: bool = True
    check: Check | None = None
    output_shape: Callable[[tuple[int, ...]], tuple[int, ...]] = lambda shape: shape


def build_op(op: Op, case: Case) -> Workload:
    """Builds inputs and callables of a case of this op."""
    torch.manual_seed(0)
    eager, fused = (_moved(function, case.device) for function in op.make(case.shape))
    inputs = [_random(case, case.shape).requires_grad_(op.training) for _ in range(op.inputs)]
    grad_output = _random(case, op.output_shape(case.shape)) if case.direction == "forward+backward" else None
    target = torch.empty_like(inputs[0]).copy_(inputs[0].detach())
    source = inputs[0].detach()
    side = partial(_side, inputs=inputs, grad_output=grad_output, inplace=op.inplace)
    tensors = op.forward_tensors + (op.backward_tensors if grad_output is not None else 0)

    def compiled() -> Side:
        torch.compiler.reset()
        return side(torch.compile(eager, dynamic=False))

    def bytes_kept() -> tuple[int, int]:
        arguments = _clones(inputs) if op.inplace else inputs
        return bytes_kept_for_backward(eager, *arguments), bytes_kept_for_backward(fused, *arguments)

    return Workload(
        sides={"eager": side(eager), "fused": side(fused), "copy": Side(partial(target.copy_, source))},
        compiled=compiled,
        check=partial(op.check or check_values, fused, eager, inputs, grad_output),
        bytes_kept=bytes_kept,
        elements=source.numel(),
        min_bytes=tensors * source.nbytes,
    )


def _random(case: Case, shape: tuple[int, ...]) -> Tensor:
    tensor = torch.randn(shape, device=case.device).to(case.dtype)
    return tensor.contiguous(memory_format=case.memory_format)


def _moved(function: Callable[..., Tensor], device: str) -> Callable[..., Tensor]:
    return function.to(device) if isinstance(function, nn.Module) else function


def _clones(inputs: Sequence[Tensor]) -> list[Tensor]:
    return [x.clone() for x in inputs]


def _side(function: Callable[..., Tensor], inputs: list[Tensor], grad_output: Tensor | None, inplace: bool) -> Side:
    leaves = [*inputs, *_parameters(function)]

    def forward(arguments: Sequence[Tensor] = inputs) -> Tensor:
        return function(*arguments)

    def forward_and_backward(arguments: Sequence[Tensor] = inputs) -> tuple[Tensor, ...]:
        return torch.autograd.grad(function(*arguments), leaves, grad_output)

    call = forward if grad_output is None else forward_and_backward
    return Side(call, partial(_clones, inputs) if inplace else None)


def _parameters(function: Callable[..., Tensor]) -> list[Tensor]:
    return list(function.parameters()) if isinstance(function, nn.Module) else []


def check_values(
    fused: Callable[..., Tensor],
    eager: Callable[..., Tensor],
    inputs: list[Tensor],
    grad_output: Tensor | None,
) -> None:
    """Compares results, gradients, buffers and strides with those of the eager code in float64."""
    dtype = inputs[0].dtype
    expected = _results(_double(eager), [x.detach().double() for x in inputs], _double(grad_output))
    actual = _results(copy.deepcopy(fused), [x.detach().clone() for x in inputs], grad_output)
    for name, reference in expected.items():
        value = actual[name]
        if value.stride() != reference.stride():
            raise Mismatch(f"{name} has strides {value.stride()} instead of {reference.stride()}")
        _compare(name, value, reference, TOLERANCES[dtype])


def _double(value: Any) -> Any:
    """A copy in float64 of a tensor or module; functions and None as they are."""
    return copy.deepcopy(value).double() if isinstance(value, Tensor | nn.Module) else value


def _results(function: Callable[..., Tensor], inputs: list[Tensor], grad_output: Tensor | None) -> dict[str, Tensor]:
    """Everything that a call returns or changes, by name."""
    if grad_output is not None:
        inputs = [x.requires_grad_() for x in inputs]
    output = function(*_clones(inputs))
    results = {"output": output.detach()}
    if grad_output is not None:
        names = [f"gradient of input {i}" for i in range(len(inputs))]
        if isinstance(function, nn.Module):
            names += [f"gradient of {name}" for name, _ in function.named_parameters()]
        leaves = [*inputs, *_parameters(function)]
        results |= dict(zip(names, torch.autograd.grad(output, leaves, grad_output), strict=True))
    if isinstance(function, nn.Module):
        results |= dict(function.named_buffers())
    return results


def _compare(name: str, value: Tensor, reference: Tensor, tolerance: float) -> None:
    """Compares by elements; one-dimensional tensors, which are sums over the others, by their norm.

    One element in 100,000, and two more, may be off: where the input of a ReLU is within rounding of zero,
    its gradient is one thing or the other.
    """
    error = (value.double() - reference).abs()
    if value.dim() < 2:
        relative = (error.norm() / reference.double().norm().clamp(min=1)).item()
        if not relative <= 10 * tolerance:
            raise Mismatch(f"{name}: off by {relative:.1e} of its norm")
        return
    wrong = int((~(error <= tolerance * (1 + reference.abs()))).sum())
    if wrong > value.numel() // 100_000 + 2:
        raise Mismatch(f"{name}: {wrong} of {value.numel()} elements off, by up to {error.max():.1e}")


def check_dropout(
    fused: Callable[..., Tensor],
    eager: Callable[..., Tensor],
    inputs: list[Tensor],
    grad_output: Tensor | None,
    p: float = 0.5,
) -> None:
    """Each element is dropped or scaled, the right share is kept, the gradient has the same mask."""
    x = inputs[0].detach().clone().requires_grad_(grad_output is not None)
    y = fused(x)
    kept = y.detach() != 0
    if not torch.equal(y.detach(), torch.where(kept, x.detach() / (1 - p), 0)):
        raise Mismatch("output: an element is neither dropped nor scaled")
    share, deviation = kept.double().mean().item(), math.sqrt(p * (1 - p) / x.numel())
    if abs(share - (1 - p)) > 6 * deviation + 1e-6:
        raise Mismatch(f"output: keeps {share:.6f} of the elements instead of {1 - p}")
    if grad_output is not None:
        (grad_input,) = torch.autograd.grad(y, x, grad_output)
        if not torch.equal(grad_input, torch.where(kept, grad_output / (1 - p), 0)):
            raise Mismatch("gradient of input 0: not the output's mask")


def check_pool(
    fused: Callable[..., Tensor],
    eager: Callable[..., Tensor],
    inputs: list[Tensor],
    grad_output: Tensor | None,
) -> None:
    """With the same random numbers, the values are those of the stock module and activation, the gradients close."""
    x = inputs[0].detach()
    samples = torch.rand(*x.shape[:2], x.dim() - 2).mul(255 / 256).to(x)
    results = []
    for function in (fused, eager):
        model = copy.deepcopy(function)
        for module in cast(nn.Module, model).modules():
            if hasattr(module, "_random_samples"):
                module._random_samples = samples
        results.append(_results(model, [x.clone()], grad_output))
    actual, expected = results
    if not torch.equal(actual["output"], expected["output"]):
        raise Mismatch("output: not that of stock's windows")
    if grad_output is not None:
        name = "gradient of input 0"
        _compare(name, actual[name], expected[name].double(), TOLERANCES[x.dtype])


def check_batch_norm_dropout(
    fused: Callable[..., Tensor],
    eager: Callable[..., Tensor],
    inputs: list[Tensor],
    grad_output: Tensor | None,
) -> None:
    """As `check_values`, with our mask in the eager code too, and one seed."""

    def seed(*_: object) -> None:
        torch.manual_seed(0)

    fused, eager = copy.deepcopy(fused), copy.deepcopy(eager)
    assert isinstance(fused, nn.Module) and isinstance(eager, nn.Module)
    eager.dropout = fused_nn.Dropout(cast("nn.Dropout", eager.dropout).p)
    for module in (fused, eager):
        module.register_forward_pre_hook(seed)
    check_values(fused, eager, inputs, grad_output)
