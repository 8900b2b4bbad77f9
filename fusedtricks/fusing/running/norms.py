"""What the rewritten graphs call: runs a chain as one kernel if that gives the same as its members, else its members.

This file has single activations and the chains that begin with a BatchNorm: a module, or the arguments of
`F.batch_norm` after its input. The members' state is looked up at call time; see `members`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ... import eager
from ... import functional as F
from ...functional._kernels import DTYPES
from ...functional._route import is_dynamo_compiling
from ...nn.batchnorm import batch_norm_act_of, norm_state
from ..layers import activations, members
from ..layers.members import (
    PLAIN,
    Activation,
    Addition,
    Dropout,
    act_of,
    activate,
    add,
    drop_of,
    fits,
    has_kernels,
)
from . import masks

stock = torch.nn.functional
Norm = nn.Module | Mapping[str, Any]
Pool = nn.Module | tuple[Any, ...]
_Tensor = Tensor | None
_State = tuple[tuple[_Tensor, _Tensor, _Tensor, _Tensor], dict[str, Any]]
_WINDOWS = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")


def norm_act(
    norm: Norm,
    input: Tensor,
    residual: Tensor | None = None,
    act: Activation = None,
    act_kwargs: Mapping[str, float] | None = None,
    addition: tuple[bool, bool] = PLAIN,
    dropout: Dropout = None,
    is_plain: bool = True,
) -> Tensor:
    """`dropout(act(norm(input) + residual))`; `addition` has the fields of an `Addition`.

    Without `is_plain`, a member is not what it was when the chain was found, and all run on their own.
    """
    acts, drops, adds = act_of(act, act_kwargs), drop_of(dropout), Addition(*addition)
    state = _state(norm, input) if is_plain and acts and drops and fits(input, residual, adds) else None
    if acts is None or drops is None or state is None:
        return masks.drop(activate(add(_normalised(norm, input), residual, adds), act, act_kwargs), dropout)
    tensors, settings = state
    together = drops.p if settings["training"] and masks.are_ours() else 0.0
    settings |= {"p": together} if together else {}
    y = F.batch_norm_act(input, *tensors, residual, act=acts.name, act_kwargs=acts.parameters, **settings)
    return masks.dropout(y, drops.p) if drops.p and not together else y


def norm_act_at_once(
    norm: Any,
    input: Tensor,
    residual: Tensor | None,
    act: Any,
    act_kwargs: Mapping[str, float] | None,
    residual_first: bool,
    dropout: Any,
) -> Tensor | None:
    """Runs `norm_act` without checking the members, which are known to be plain; None if stock may have to run."""
    if is_dynamo_compiling() or input.dtype not in DTYPES or not (input.is_cpu or members.runs_on(input)):
        return None
    if residual is not None and not _is_alike(input, residual, residual_first):
        return None
    if act.__class__ is not str:
        act, act_kwargs = activations.of_module(act) or ("", None)
    p = 0.0
    if dropout is not None and dropout.training and dropout.p:
        p = dropout.p
        if not (0 <= p <= 1 and norm.training and masks.are_ours() and members.is_dropout(dropout)):
            return None
    return batch_norm_act_of(norm, input, residual, act, act_kwargs, p)


def _is_alike(input: Tensor, residual: Tensor, residual_first: bool) -> bool:
    same = residual.shape == input.shape and residual.dtype is input.dtype and residual.device == input.device
    return same and (not residual_first or residual.stride() == input.stride())


def norm_act_pool(
    norm: Norm, input: Tensor, act: Activation, act_kwargs: Mapping[str, float] | None, pool: Pool
) -> Tensor:
    """`pool(act(norm(input)))`; `pool` is a module, or the arguments of `F.max_pool2d` after its input."""
    acts, windows = act_of(act, act_kwargs), _windows(pool)
    state = _state(norm, input) if acts and windows and has_kernels(input) and input.dim() == 4 else None
    if acts is None or windows is None or state is None:
        return _pooled(norm_act(norm, input, None, act, act_kwargs), pool)
    tensors, settings = state
    return F.batch_norm_act_max_pool2d(input, *tensors, act=acts.name, act_kwargs=acts.parameters, **windows | settings)


def _state(norm: Norm, input: Tensor) -> _State | None:
    """A BatchNorm's tensors and settings for the operator; None if only stock can run it."""
    if not isinstance(norm, nn.Module):
        tensors = (norm.get("running_mean"), norm.get("running_var"), norm.get("weight"), norm.get("bias"))
        settings: dict[str, Any] = {"training": False, "momentum": 0.1, "eps": 1e-5}
        settings.update({name: norm[name] for name in settings if name in norm})
        return tensors, settings
    is_plain = members.is_batch_norm(norm) and not members.has_hooks(norm) and not members.any_global_hooks()
    return norm_state(norm, input) if is_plain else None


def _normalised(norm: Norm, input: Tensor) -> Tensor:
    return norm(input) if isinstance(norm, nn.Module) else stock.batch_norm(input, **norm)


def _windows(pool: Pool) -> dict[str, Any] | None:
    """The arguments of max-pooling; None for a module that is not plain max-pooling or has hooks."""
    if not isinstance(pool, nn.Module):
        return dict(zip(_WINDOWS, pool, strict=False))  # the last, return_indices, is left out
    if not members.is_max_pool(pool) or pool.return_indices or members.has_hooks(pool):
        return None
    return {name: getattr(pool, name) for name in _WINDOWS}


def _pooled(z: Tensor, pool: Pool) -> Tensor:
    return pool(z) if isinstance(pool, nn.Module) else stock.max_pool2d(z, *pool)


def activation(input: Tensor, act: str, inplace: bool = False, **act_kwargs: float) -> Tensor:
    """An activation by name: ours if there are kernels for the tensor, else stock's."""
    if members.is_ours_alone(input):
        return F.activation(input, act, inplace=inplace, **act_kwargs)
    result = eager.activation(input, act, **act_kwargs)
    return input.copy_(result) if inplace else result
