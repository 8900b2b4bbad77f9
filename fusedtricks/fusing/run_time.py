"""What the rewritten graphs call: a chain in one kernel where that gives what its members would, else its members.

Everything is looked up when it is called: modules may have been replaced, frozen, converted or given hooks since.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .. import _build_info, eager
from .. import functional as F
from ..nn.batchnorm import batch_norm_act_of
from . import activations

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_DEVICES = {"cpu", "meta", *(name for name in _build_info.backends if name == "cuda")}
_stock_dropout: ContextVar[bool] = ContextVar("stock_dropout", default=False)
_BATCH_NORM_FORWARDS = {_BatchNorm.forward}
_GLOBAL_HOOKS = (
    torch_module._global_forward_hooks,
    torch_module._global_forward_pre_hooks,
    torch_module._global_backward_hooks,
    torch_module._global_backward_pre_hooks,
)


def recognise_batch_norm(forward: Any) -> None:
    """Makes a further forward known as that of stock BatchNorm."""
    _BATCH_NORM_FORWARDS.add(forward)


def is_batch_norm(module: nn.Module) -> bool:
    """Whether a module computes what stock BatchNorm computes, whatever it is called."""
    kind = type(module)
    is_stock = isinstance(module, _BatchNorm) and kind.forward in _BATCH_NORM_FORWARDS and not is_patched(module)
    return is_stock and kind.__call__ is nn.Module.__call__


def is_patched(module: nn.Module) -> bool:
    """Whether a module has a forward of its own, which is not that of its class."""
    return "forward" in vars(module)


def has_hooks(module: nn.Module) -> bool:
    """Whether something is called before, after or instead of the module's own forward or backward."""
    m = module
    hooks = m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
    return bool(hooks) or is_patched(m)


def any_global_hooks() -> bool:
    """Whether something is called before or after the forward or backward of every module."""
    return any(_GLOBAL_HOOKS)


def has_kernels(input: Any) -> bool:
    """Whether there are kernels for a tensor; none where the model is exported, which is to end in stock operators."""
    if not isinstance(input, Tensor) or input.dtype not in _DTYPES or input.device.type not in _DEVICES:
        return False
    if input.layout is not torch.strided or input.is_nested or torch.compiler.is_exporting() or torch.jit.is_tracing():
        return False
    return type(input) in (Tensor, nn.Parameter) or not is_traceable_wrapper_subclass(input)


def is_ours_alone(input: Any) -> bool:
    """Whether an activation or dropout that is in no chain is run by our kernels.

    Under compilation on a GPU it is Inductor's, which makes it a part of its neighbours' kernels; on the CPU Inductor's
    code was measured to be slower than ours.
    """
    return has_kernels(input) and not (torch.compiler.is_compiling() and input.is_cuda)


class Addition(NamedTuple):
    """How a chain adds its residual."""

    residual_first: bool  # residual + z, and not z + residual
    in_place: bool


def _fits(input: Any, residual: Any, addition: Addition) -> bool:
    """Whether one kernel gives what the members of a chain do, its type and its strides too."""
    if not has_kernels(input):
        return False
    if residual is None:
        return True
    if not has_kernels(residual) or residual.shape != input.shape or residual.dtype != input.dtype:
        return False
    return residual.device == input.device and (not addition.residual_first or residual.stride() == input.stride())


_PLAIN = Addition(False, False)


def norm_act(
    norm: nn.Module,
    input: Tensor,
    residual: Tensor | None = None,
    act: nn.Module | str | None = None,
    act_kwargs: Mapping[str, float] | None = None,
    addition: tuple[bool, bool] = _PLAIN,
) -> Tensor:
    """`act(norm(input) + residual)`.

    `act` is a module, or a name with its parameters, or None; `addition` the fields of an `Addition`.
    """
    activation, adds = _activation(act, act_kwargs), Addition(*addition)
    is_plain = activation is not None and is_batch_norm(norm) and not has_hooks(norm) and not any_global_hooks()
    if activation is None or not is_plain or not _fits(input, residual, adds) or not has_usual_state(norm):
        return _compose(norm(input), residual, act, act_kwargs, adds)
    return batch_norm_act_of(norm, input, residual, *activation)


def has_usual_state(norm: Any) -> bool:
    """Whether a BatchNorm's settings and buffers are such as the operator takes; stock takes some more."""
    count, momentum = norm.num_batches_tracked, norm.momentum
    counts = count is not None and count.dtype is torch.int64
    return (counts or (count is None and momentum is not None)) and (momentum is None or 0 <= momentum <= 1)


def batch_norm_act(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    act: nn.Module | str | None = None,
    act_kwargs: Mapping[str, float] | None = None,
    addition: tuple[bool, bool] = _PLAIN,
) -> Tensor:
    """`act(F.batch_norm(input, …) + residual)`: the arguments of `F.batch_norm`, then those of `norm_act`."""
    activation, adds = _activation(act, act_kwargs), Addition(*addition)
    if activation is None or not _fits(input, residual, adds) or not 0 <= momentum <= 1:
        z = torch.nn.functional.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
        return _compose(z, residual, act, act_kwargs, adds)
    return F.batch_norm_act(
        input,
        running_mean,
        running_var,
        weight,
        bias,
        residual,
        act=activation[0],
        act_kwargs=activation[1],
        training=training,
        momentum=momentum,
        eps=eps,
    )


def _activation(act: nn.Module | str | None, act_kwargs: Any) -> tuple[str, Any] | None:
    """The activation's name and parameters; None for a module that is not one of ours, or has hooks."""
    if act is None:
        return "identity", None
    if isinstance(act, str):
        return act, act_kwargs
    return None if has_hooks(act) else activations.of_module(act)


def _compose(
    z: Tensor, residual: Tensor | None, act: nn.Module | str | None, act_kwargs: Any, addition: Addition
) -> Tensor:
    if residual is not None:
        add = operator.iadd if addition.in_place else operator.add
        z = add(residual, z) if addition.residual_first else add(z, residual)
    if act is None:
        return z
    if isinstance(act, nn.Module):
        return act(z)
    return activation(z, act, **(act_kwargs or {}))


def activation(input: Tensor, act: str, inplace: bool = False, **act_kwargs: float) -> Tensor:
    """An activation by its name, ours where there are kernels for the tensor."""
    if is_ours_alone(input):
        return F.activation(input, act, inplace=inplace, **act_kwargs)
    result = eager.activation(input, act, **act_kwargs)
    return input.copy_(result) if inplace else result


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """`F.dropout`, ours where there are kernels for the tensor."""
    if is_ours_alone(input) and (torch.compiler.is_compiling() or not _stock_dropout.get()):
        return F.dropout(input, p, training, inplace)
    return torch.nn.functional.dropout(input, p, training, inplace)


@contextmanager
def stock_dropout() -> Iterator[None]:
    """Within it the masks are those of stock's dropout, so that a model can be compared with a stock one."""
    token = _stock_dropout.set(True)
    try:
        yield
    finally:
        _stock_dropout.reset(token)
