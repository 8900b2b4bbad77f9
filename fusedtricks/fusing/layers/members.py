"""What a chain's members are at call time: modules may have been replaced, frozen, converted or given hooks."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.modules.batchnorm import _BatchNorm

from ... import eager
from ... import nn as ftnn
from ...functional._kernels import DEVICES, note_fallback, why_no_kernel
from . import activations
from .classes import is_changed, is_unchanged, remember

_BATCH_NORM_FORWARDS = {_BatchNorm.forward}
_DROPOUTS: set[type[nn.Module]] = {nn.Dropout, ftnn.Dropout}
_FRACTIONAL_POOLS: set[type[nn.Module]] = {nn.FractionalMaxPool2d, nn.FractionalMaxPool3d}
_GLOBAL_HOOKS = (
    torch_module._global_forward_hooks,
    torch_module._global_forward_pre_hooks,
    torch_module._global_backward_hooks,
    torch_module._global_backward_pre_hooks,
)

for _kind in (*_DROPOUTS, *_FRACTIONAL_POOLS, nn.MaxPool2d, nn.Linear):
    remember(_kind)


def recognise(twin: type[nn.Module], stock: type[nn.Module]) -> None:
    """Registers `twin` as a class whose modules are treated like those of `stock`."""
    for known in (_DROPOUTS, _FRACTIONAL_POOLS):
        if stock in known:
            known.add(twin)
            remember(twin, stock)
    if issubclass(stock, _BatchNorm):
        _BATCH_NORM_FORWARDS.add(twin.forward)
        remember(twin, stock)
    activations.recognise(twin, stock)


def is_batch_norm(module: nn.Module) -> bool:
    """Whether a module computes the same as stock BatchNorm, whatever its class is called."""
    kind = type(module)
    is_stock = isinstance(module, _BatchNorm) and kind.forward in _BATCH_NORM_FORWARDS and not is_patched(module)
    return is_stock and kind.__call__ is nn.Module.__call__ and not is_changed(kind)


def is_dropout(module: nn.Module) -> bool:
    """Whether a module is element-wise dropout that does nothing in evaluation."""
    kind = type(module)
    return kind in _DROPOUTS and is_unchanged(kind) and getattr(module, "mode", "inverted") == "inverted"


def is_fractional_pool(module: nn.Module) -> bool:
    return type(module) in _FRACTIONAL_POOLS and is_unchanged(type(module))


def is_max_pool(module: nn.Module) -> bool:
    return type(module) is nn.MaxPool2d and is_unchanged(nn.MaxPool2d)


def is_linear(module: nn.Module) -> bool:
    return type(module) is nn.Linear and is_unchanged(nn.Linear)


def is_patched(module: nn.Module) -> bool:
    """Whether a module instance has its own forward instead of that of its class."""
    return "forward" in vars(module)


def has_hooks(module: nn.Module) -> bool:
    """Whether something runs before, after or instead of the module's forward or backward."""
    m = module
    hooks = m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
    return bool(hooks) or is_patched(m)


def any_global_hooks() -> bool:
    """Whether something runs before or after the forward or backward of every module."""
    return any(_GLOBAL_HOOKS)


def has_kernels(input: Any) -> bool:
    """Whether there are kernels for a tensor. False during export, because exported models use stock operators.

    Where there are none, stock's layers run: `functional.fallbacks` counts that.

    Raises:
        NotImplementedError: there are none, and `FUSEDTRICKS_STRICT` is set.
    """
    if not isinstance(input, Tensor) or torch.compiler.is_exporting() or torch.jit.is_tracing():
        return False
    reason = why_no_kernel((input,))
    if reason and not torch.compiler.is_compiling():
        note_fallback("a fused model", reason)
    return not reason


def runs_on(input: Tensor) -> bool:
    """Whether there is a backend for a tensor's device."""
    return input.device.type in DEVICES


def is_ours_alone(input: Any) -> bool:
    """Whether our kernels run a layer that does not follow a BatchNorm.

    When compiling for a GPU we leave it to Inductor, which merges it into neighbouring kernels; on the CPU, Inductor's
    code was measured to be slower than ours.
    """
    return has_kernels(input) and not (torch.compiler.is_compiling() and input.is_cuda)


class Addition(NamedTuple):
    """How a chain adds its residual."""

    residual_first: bool  # residual + z instead of z + residual
    in_place: bool


PLAIN = Addition(False, False)


def fits(input: Any, residual: Any, addition: Addition) -> bool:
    """Whether one kernel gives the same as the members of a chain, including dtype and strides."""
    if not has_kernels(input):
        return False
    if residual is None:
        return True
    if not has_kernels(residual) or residual.shape != input.shape or residual.dtype != input.dtype:
        return False
    return residual.device == input.device and (not addition.residual_first or residual.stride() == input.stride())


def add(z: Tensor, residual: Tensor | None, addition: Addition) -> Tensor:
    """Adds as the user wrote it."""
    if residual is None:
        return z
    function = operator.iadd if addition.in_place else operator.add
    return function(residual, z) if addition.residual_first else function(z, residual)


class Act(NamedTuple):
    """What an activation currently is."""

    name: str
    parameters: Any
    in_place: bool


Activation = nn.Module | str | None
"""An activation in a graph: a module, a name that comes with parameters, or None."""


def act_of(act: Activation, act_kwargs: Mapping[str, float] | None) -> Act | None:
    """What an activation currently is; None for a module that is unknown or has hooks."""
    if act is None:
        return Act("identity", None, False)
    if isinstance(act, str):
        return Act(act, act_kwargs, False)
    found = None if has_hooks(act) else activations.of_module(act)
    return Act(*found, bool(getattr(act, "inplace", False))) if found else None


def activate(z: Tensor, act: Activation, act_kwargs: Mapping[str, float] | None) -> Tensor:
    """Applies an activation on its own; a function runs as stock, so that it keeps the same tensors as stock."""
    if act is None:
        return z
    return act(z) if isinstance(act, nn.Module) else eager.activation(z, act, **(act_kwargs or {}))


class Drop(NamedTuple):
    """What a dropout currently does."""

    p: float  # 0 in evaluation
    in_place: bool


Dropout = nn.Module | tuple[float, bool, bool] | None
"""Dropout in a graph: a module, or (p, training, inplace), or None."""


def drop_of(dropout: Dropout) -> Drop | None:
    """What a dropout currently does; None for a module that is unknown or has hooks, and for a p that stock rejects."""
    if dropout is None:
        return Drop(0.0, False)
    if isinstance(dropout, nn.Module):
        if has_hooks(dropout) or not is_dropout(dropout):
            return None
        dropout = (dropout.p, dropout.training, dropout.inplace)  # type: ignore[assignment]
    p, training, in_place = dropout  # type: ignore[misc]
    return Drop(p if training else 0.0, in_place) if 0 <= p <= 1 else None
