"""What an op of the registry is, and how a case of it becomes what is checked and timed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from fusedtricks.stock import bytes_kept_for_backward

from .case import Case
from .check import Arguments, Function, Reference, check
from .measure import Side
from .workload import Workload

Shape = tuple[int, ...]
Pair = tuple[Function, Function]


@dataclass(frozen=True)
class Op:
    """An op of the registry.

    Attributes:
        name: of the op.
        make: input shape -> the stock callable and the fused one.
        reference: what both compute, of `fusedtricks.eager`; see `check.Reference`.
        draws: whether results follow from random numbers, which stock draws in its own way.
        flips: whether rounding can decide otherwise for a few elements; see `check.check`.
        inputs: how many tensors of the input's shape it takes.
        parameters: input shape -> shapes of further arguments, in float32, that get gradients.
        buffers: input shape -> shapes of further arguments, in float32, that a call changes.
        inplace: whether it overwrites its input.
        training: whether its inputs and parameters need gradients.
        output_shape: input shape -> shape of the result.
        forward_tensors: how many tensors of the input's size forward reads and writes at least.
        backward_tensors: the same of backward.
    """

    name: str
    make: Callable[[Shape], Pair]
    reference: Reference
    draws: bool = False
    flips: bool = False
    inputs: int = 1
    parameters: Callable[[Shape], Sequence[Shape]] = lambda shape: ()
    buffers: Callable[[Shape], Sequence[Shape]] = lambda shape: ()
    inplace: bool = False
    training: bool = True
    output_shape: Callable[[Shape], Shape] = lambda shape: shape
    forward_tensors: int = 2
    backward_tensors: int = 3


def build_op(op: Op, case: Case) -> Workload:
    """Makes the arguments and both sides of a case of this op."""
    torch.manual_seed(0)
    stock, fused = (_moved(function, case.device) for function in op.make(case.shape))
    arguments = make_arguments(op, case)
    source = arguments.inputs[0].detach()
    target = torch.empty_like(source).copy_(source)
    side = partial(_side, arguments, op.inplace)
    tensors = op.forward_tensors + (op.backward_tensors if arguments.grad_output is not None else 0)

    def compiled() -> Side:
        torch.compiler.reset()
        return side(torch.compile(stock, dynamic=False))

    def checked() -> None:
        deterministic = None if op.draws else stock
        check(fused, op.reference, arguments, case.memory_format, op.flips, deterministic)

    def bytes_kept() -> tuple[int, int]:
        tensors = _clones(arguments) if op.inplace else _tensors(arguments)
        return bytes_kept_for_backward(stock, *tensors), bytes_kept_for_backward(fused, *tensors)

    return Workload(
        sides={"eager": side(stock), "fused": side(fused), "copy": Side(partial(target.copy_, source))},
        compiled=compiled,
        check=checked,
        bytes_kept=bytes_kept,
        elements=source.numel(),
        min_bytes=tensors * source.nbytes,
    )


def make_arguments(op: Op, case: Case) -> Arguments:
    """Normally distributed arguments of the op, and a gradient of its result unless the case is of forward alone."""
    return Arguments(
        inputs=[_random(case, case.shape).requires_grad_(op.training) for _ in range(op.inputs)],
        parameters=[torch.randn(shape, device=case.device).requires_grad_() for shape in op.parameters(case.shape)],
        buffers=[torch.ones(shape, device=case.device) for shape in op.buffers(case.shape)],
        grad_output=_random(case, op.output_shape(case.shape)) if case.direction == "forward+backward" else None,
    )


def _random(case: Case, shape: Shape) -> Tensor:
    tensor = torch.randn(shape, device=case.device).to(case.dtype)
    return tensor.contiguous(memory_format=case.memory_format)


def _moved(function: Function, device: str) -> Function:
    return function.to(device) if isinstance(function, nn.Module) else function


def _tensors(arguments: Arguments) -> list[Tensor]:
    return [*arguments.inputs, *arguments.parameters, *arguments.buffers]


def _clones(arguments: Arguments) -> list[Tensor]:
    return [tensor.clone() for tensor in _tensors(arguments)]


def _side(arguments: Arguments, inplace: bool, function: Function) -> Side:
    tensors, grad_output = _tensors(arguments), arguments.grad_output
    own_parameters = function.parameters() if isinstance(function, nn.Module) else ()
    leaves = [*arguments.inputs, *arguments.parameters, *own_parameters]

    def forward(tensors: Sequence[Tensor] = tensors) -> Tensor:
        return function(*tensors)

    def forward_and_backward(tensors: Sequence[Tensor] = tensors) -> tuple[Tensor, ...]:
        return torch.autograd.grad(function(*tensors), leaves, grad_output)

    call = forward if grad_output is None else forward_and_backward
    return Side(call, partial(_clones, arguments) if inplace else None)
