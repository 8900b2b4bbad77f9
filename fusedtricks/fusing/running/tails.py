"""What the rewritten graphs call for chains without a BatchNorm: ends of layers, stochastic depth, random pooling.

As in `norms`, a chain runs as one kernel if that gives the same as its members, else member by member. If other code
may see a chain's input, members that have since become in-place run themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ... import functional as F
from ..layers import activations, drop_paths
from ..layers.members import (
    PLAIN,
    Act,
    Activation,
    Addition,
    Drop,
    Dropout,
    act_of,
    activate,
    add,
    any_global_hooks,
    drop_of,
    fits,
    has_hooks,
    has_kernels,
    is_fractional_pool,
    is_linear,
    is_ours_alone,
)
from . import masks

Linear = nn.Module | tuple[Tensor, Tensor] | None
Pool = nn.Module | tuple[Any, ...]


def tail(
    linear: Linear,
    input: Tensor,
    act: Activation,
    act_kwargs: Mapping[str, float] | None,
    dropout: Dropout,
    residual: Tensor | None = None,
    addition: tuple[bool, bool] = PLAIN,
    owns_input: bool = False,
) -> Tensor:
    """`dropout(act(linear(input))) + residual`; `linear` is a module, or (weight, bias), or None.

    Without `owns_input`, members that have since become in-place run themselves.
    """
    acts, drops, adds = act_of(act, act_kwargs), drop_of(dropout), Addition(*addition)
    if acts is None or drops is None or not _is_tail(linear, input, acts, drops, owns_input):
        return add(masks.drop(activate(_transformed(linear, input), act, act_kwargs), dropout), residual, adds)
    weight, bias = _parameters(linear)
    z = input if weight is None else torch.nn.functional.linear(input, weight)
    is_added = residual is not None and fits(z, residual, adds)
    y = F.act_dropout(z, bias, residual if is_added else None, act=acts.name, act_kwargs=acts.parameters, p=drops.p)
    if is_added or residual is None:
        return y
    keeps_y = adds.in_place and not adds.residual_first
    return add(y.clone() if keeps_y else y, residual, adds)


def drop_path(
    module: nn.Module, input: Tensor, residual: Tensor | None = None, addition: tuple[bool, bool] = PLAIN
) -> Tensor:
    """`module(input) + residual`."""
    drops, adds = drop_paths.of_module(module), Addition(*addition)
    is_plain = drops is not None and module.training and drops.p > 0 and not has_hooks(module)
    if drops is None or not is_plain or any_global_hooks() or not _takes_masks(input) or not input.dim():
        return add(module(input), residual, adds)
    is_added = residual is not None and fits(input, residual, adds)
    y = F.drop_path(
        input, drops.p, residual if is_added else None, drops.mode, training=True, scale_by_keep=drops.scale_by_keep
    )
    return y if is_added else add(y, residual, adds)


def act_pool(
    input: Tensor,
    act: Activation,
    act_kwargs: Mapping[str, float] | None,
    pool: Pool,
    name: str,
    owns_input: bool = False,
) -> Tensor:
    """`pool(act(input))` with fractional max-pooling: a module, or the arguments of the function called `name`."""
    acts = act_of(act, act_kwargs)
    is_ours = acts is not None and _takes_masks(input) and (owns_input or not acts.in_place)
    if isinstance(pool, nn.Module):
        is_ours = is_ours and is_fractional_pool(pool) and not has_hooks(pool) and not pool.return_indices
    if acts is None or not is_ours or any_global_hooks() or not activations.never_decreases(acts.name, acts.parameters):
        return _pooled(activate(input, act, act_kwargs), pool, name)
    return getattr(F, name)(input, *_regions(pool), act=acts.name, act_kwargs=acts.parameters)


def _is_tail(linear: Linear, input: Tensor, act: Act, drops: Drop, owns_input: bool) -> bool:
    """Whether the kernel gives the same as the members, in fewer passes over memory."""
    if not is_ours_alone(input) or any_global_hooks() or (drops.p and not masks.are_ours()):
        return False
    if act.name == "identity" and not drops.p:  # stock needs no pass for this
        return False
    if linear is None:
        return owns_input or not (act.in_place or drops.in_place)
    if isinstance(linear, nn.Module) and (not is_linear(linear) or has_hooks(linear)):
        return False
    weight, bias = _parameters(linear)
    return has_kernels(weight) and has_kernels(bias) and weight.dtype == bias.dtype and bias.dim() == 1


def _takes_masks(input: Tensor) -> bool:
    return is_ours_alone(input) and masks.are_ours()


def _parameters(linear: Linear) -> Any:
    if isinstance(linear, nn.Module):
        return linear.weight, linear.bias
    return linear or (None, None)


def _transformed(linear: Linear, input: Tensor) -> Tensor:
    if isinstance(linear, nn.Module):
        return linear(input)
    return torch.nn.functional.linear(input, *linear) if linear else input


def _pooled(z: Tensor, pool: Pool, name: str) -> Tensor:
    return pool(z) if isinstance(pool, nn.Module) else getattr(masks, name)(z, *pool)


def _regions(pool: Pool) -> tuple[Any, ...]:
    if isinstance(pool, nn.Module):
        return pool.kernel_size, pool.output_size, pool.output_ratio, False, pool._random_samples
    return pool
