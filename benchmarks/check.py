"""The one check of every op: its values, gradients, buffers and layouts against a reference in float64.

The reference of an op is a call of `fusedtricks.eager`. Its dropout masks are a function of a seed; the check finds the
seed that a call of the fused op draws, and gives it to the reference.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

GENERATOR_SEED = 20
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-3, torch.float64: 1e-9}
"""Largest error that passes: of an element relative to 1 + its size, of a sum relative to its tensor's norm."""

HARDSIGMOID_TOLERANCE = 1e-7
"""The same for stock's hardsigmoid in float64, whose gradient multiplies by a 1/6 in float32."""

Function = Callable[..., Tensor]
Reference = Callable[..., Tensor]
"""(model, seed, *arguments) -> result.

`model` is the fused callable, a module in float64: the reference takes parameters and buffers from it. `seed` is that
of the mask or windows that the fused op drew. `arguments` are those of the op, in float64.
"""


class Mismatch(Exception):
    """A side of a case gives other values than it must, so the case is not timed."""


@dataclass(frozen=True)
class Arguments:
    """What an op is called with: inputs, then parameters, then buffers.

    Attributes:
        inputs: tensors of the case's dtype and memory format.
        parameters: further tensors that get gradients.
        buffers: tensors that the call changes.
        grad_output: of the result, or None to check forward alone.
    """

    inputs: Sequence[Tensor]
    parameters: Sequence[Tensor] = ()
    buffers: Sequence[Tensor] = ()
    grad_output: Tensor | None = None

    def converted(self, convert: Callable[[Tensor], Tensor]) -> "Arguments":
        """Detached copies, passed through a conversion."""
        inputs, parameters, buffers = (
            [convert(tensor.detach().clone()) for tensor in tensors]
            for tensors in (self.inputs, self.parameters, self.buffers)
        )
        return Arguments(inputs, parameters, buffers, None if self.grad_output is None else convert(self.grad_output))


@dataclass
class Results:
    """What a call returns and changes, by name.

    Attributes:
        elements: the result and the gradients of the inputs, which are compared element by element.
        sums: gradients of parameters and buffers, each of whose elements sums over many; compared by their norms.
    """

    elements: dict[str, Tensor] = field(default_factory=dict)
    sums: dict[str, Tensor] = field(default_factory=dict)


def check(
    fused: Function,
    reference: Reference,
    arguments: Arguments,
    memory_format: torch.memory_format,
    flips: bool = False,
    stock: Function | None = None,
    reference_device: torch.device | str | None = None,
) -> None:
    """Compares the fused op with its reference.

    Args:
        fused: the callable that is timed.
        reference: what it must compute.
        arguments: of both; they stay as they are.
        memory_format: of the inputs, which the result and their gradients must have too.
        flips: whether rounding can decide otherwise for a few elements: a ReLU's input that is nearly zero, two values
            in a window that are nearly equal.
        stock: the callable that fused is timed against, if it draws no random numbers. In float64 it must agree with
            the reference to rounding.
        reference_device: where the reference is computed; by default where the arguments are.

    Raises:
        Mismatch: naming the tensor that is wrong.
    """
    dtype, device = arguments.inputs[0].dtype, arguments.inputs[0].device
    seed = drawn_seed(device)
    torch.manual_seed(GENERATOR_SEED)
    model = copy.deepcopy(fused)
    found = _results(model, model, arguments.converted(lambda tensor: tensor))
    _check_layout(found, dtype, memory_format)
    expected = _expected(fused, reference, seed, arguments, torch.device(reference_device or device))
    _compare(found, expected, TOLERANCES[dtype], flips)
    if stock is not None:
        _check_stock(stock, arguments, expected)


def _check_stock(stock: Function, arguments: Arguments, expected: Results) -> None:
    model = _double(stock)
    inexact = "hardsigmoid" in repr(stock).lower()
    found = _results(model, model, arguments.converted(Tensor.double))
    try:
        _compare(found, expected, HARDSIGMOID_TOLERANCE if inexact else TOLERANCES[torch.float64], flips=False)
    except Mismatch as mismatch:
        raise Mismatch(f"the stock side, in float64: {mismatch}") from None


def drawn_seed(device: torch.device) -> int:
    """The seed that the first random call of ours draws after `torch.manual_seed(GENERATOR_SEED)`."""
    torch.manual_seed(GENERATOR_SEED)
    _, seed_and_offset = torch.ops.fusedtricks.dropout(torch.ones(1, device=device), 0.5, "inverted", None)
    return int(seed_and_offset[0])


def _expected(fused: Function, reference: Reference, seed: int, arguments: Arguments, device: torch.device) -> Results:
    model = _double(fused, device)
    converted = arguments.converted(lambda tensor: tensor.to(device).double())
    torch.manual_seed(GENERATOR_SEED)
    return _results(partial(reference, model, seed), model, converted)


def _double(function: Any, device: torch.device | None = None) -> Any:
    """A copy of a module in float64; functions as they are."""
    return copy.deepcopy(function).to(device).double() if isinstance(function, nn.Module) else function


def _results(call: Function, model: Any, arguments: Arguments) -> Results:
    """Calls with these arguments, which become leaves; parameters and buffers of the model count as well."""
    leaves = [*arguments.inputs, *arguments.parameters]
    if arguments.grad_output is not None:
        for leaf in leaves:
            leaf.requires_grad_()
    output = call(*(leaf.clone() for leaf in leaves), *arguments.buffers)  # clones, for an op that works in place
    results = Results({"output": output.detach()})
    own_parameters, own_buffers = {}, {}
    if isinstance(model, nn.Module):
        own_parameters, own_buffers = dict(model.named_parameters()), dict(model.named_buffers())
    if arguments.grad_output is not None:
        gradients = torch.autograd.grad(output, [*leaves, *own_parameters.values()], arguments.grad_output)
        n = len(arguments.inputs)
        names = [*(f"parameter {i}" for i in range(len(arguments.parameters))), *own_parameters]
        results.elements |= {f"gradient of input {i}": gradient for i, gradient in enumerate(gradients[:n])}
        results.sums |= {f"gradient of {name}": g for name, g in zip(names, gradients[n:], strict=True)}
    results.sums |= {f"buffer {i}": buffer for i, buffer in enumerate(arguments.buffers)} | own_buffers
    return results


def _check_layout(results: Results, dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    for name, tensor in results.elements.items():
        if tensor.dtype != dtype:
            raise Mismatch(f"{name} is of {tensor.dtype} instead of {dtype}")
        if not tensor.is_contiguous(memory_format=memory_format):
            raise Mismatch(f"{name} has strides {tensor.stride()}, which are not {memory_format}")


def _compare(found: Results, expected: Results, tolerance: float, flips: bool) -> None:
    """Compares in the order of the names; those of the two may differ, as the modules of stock and of ours do."""
    for (name, reference), value in zip(expected.elements.items(), found.elements.values(), strict=True):
        _compare_elements(name, _beside(name, value, reference), reference, tolerance, flips)
    for (name, reference), value in zip(expected.sums.items(), found.sums.values(), strict=True):
        _compare_norms(name, _beside(name, value, reference), reference, tolerance, flips)


def _beside(name: str, value: Tensor, reference: Tensor) -> Tensor:
    """The value in float64 where the reference is."""
    if value.shape != reference.shape:
        raise Mismatch(f"{name} has shape {tuple(value.shape)} instead of {tuple(reference.shape)}")
    return value.to(reference.device).double()


def _compare_elements(name: str, value: Tensor, reference: Tensor, tolerance: float, flips: bool) -> None:
    """With flips, one element in 100,000, and two more, may be off."""
    error = (value - reference).abs()
    wrong = int((~(error <= tolerance * (1 + reference.abs()))).sum())  # a NaN is wrong
    if wrong > (value.numel() // 100_000 + 2 if flips else 0):
        raise Mismatch(f"{name}: {wrong} of {value.numel()} elements off, by up to {error.max():.1e}")


def _compare_norms(name: str, value: Tensor, reference: Tensor, tolerance: float, flips: bool) -> None:
    """With flips, each of which moves a few sums, ten times the tolerance passes."""
    relative = ((value - reference).norm() / reference.double().norm().clamp(min=1)).item()
    if not relative <= tolerance * (10 if flips else 1):
        raise Mismatch(f"{name}: off by {relative:.1e} of its norm")
