"""Says in words what a kept tensor is and why it is kept."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from .saves import Depth, Saved

_SEED = ((2,), torch.int64)
_WORDS = {
    "Convolution": "a convolution",
    "Addmm": "a linear layer",
    "Cat": "a concatenation",
    "batch_norm_act_max_pool2d": "a fused BatchNorm with pooling",
    "act_dropout": "a fused activation with dropout",
    "activation": "a fused activation",
    "dropout": "fused dropout",
    "feature_dropout": "fused dropout",
}
_INPUT_NOT_KEPT = {
    "activation": "its gradient is read off it, its input is not kept",
    "act_dropout": "its gradient is read off it, its input is not kept",
    "dropout": "its input is not kept",
    "feature_dropout": "its input is not kept",
}


def reason_for(saved: Sequence[Saved], depth: Depth) -> str:
    """The reason for one piece of memory, of which all these were saved."""
    first = saved[0]
    if first.is_source and len(first.shape) == 1:
        return "a copy of a fused layer's weight or bias, which outputs are recomputed with"
    if first.is_source:
        return "a part of a concatenation, which is joined again from it"
    if not first.producer:
        return _without_gradient(first)
    name = re.sub(r"(Backward\d*|_?_gradient)$", "", first.producer)
    output = f"the output of {_WORDS.get(name, name)}"
    if depth is False or first.is_recipe:
        return output
    if any(each.why_kept.startswith("changed") for each in saved):
        return "a fused layer's output that was changed in place"
    if first.is_joint:
        return f"a residual joint's output: {_of_joint(depth)}"
    if first.producer.endswith("_gradient"):
        return f"{output}: {_INPUT_NOT_KEPT.get(name, 'this kind is not computed again')}"
    if any(each.is_for_ours for each in saved):
        return f"{output}: fused layers compute their outputs and gradients from it"
    return f"{output}: a layer that is not fused needs it"


def _without_gradient(saved: Saved) -> str:
    if saved.dtype == torch.bool:
        return "a mask, as of dropout"
    if (saved.shape, saved.dtype) == _SEED and saved.is_for_ours:
        return "a seed, which a random mask or samples follow from"
    if not saved.dtype.is_floating_point and not saved.dtype.is_complex:
        return "indices, as of max-pooling"
    if len(saved.shape) < 2:
        return "statistics of BatchNorm, or other small values"
    return "values computed without a gradient, as dropout's random mask"


def _of_joint(depth: int | None) -> str:
    others = "its residual is kept by nobody else"
    if depth is None:
        return others
    if depth == 0:
        return "depth=0 keeps all of them"
    return f"depth={depth} keeps every {'other' if depth == 1 else f'{depth + 1}th'} one of a row, or {others}"
