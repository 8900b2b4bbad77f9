"""Argument checks shared by the functions, and the names of the activations."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .. import _C

ACTIVATIONS: dict[str, dict[str, float]] = {name: dict(parameters) for name, parameters in _C.activations()}
"""Every activation by name, with its parameters and their defaults."""

_DEFAULT_ARGUMENTS = {name: list(parameters.values()) for name, parameters in ACTIVATIONS.items()}


def activation_arguments(act: str, act_kwargs: Mapping[str, float] | None) -> list[float]:
    """The parameters of an activation, in the order the operators expect.

    Raises:
        ValueError: if `act` is not one of `ACTIVATIONS`.
        TypeError: if `act_kwargs` names a parameter that the activation does not have.
    """
    if act not in ACTIVATIONS:
        raise ValueError(f"act: unknown activation {act!r}; known are: {', '.join(ACTIVATIONS)}")
    if not act_kwargs:
        return _DEFAULT_ARGUMENTS[act]
    parameters = ACTIVATIONS[act]
    for name in act_kwargs:
        if name not in parameters:
            takes = ", ".join(parameters) or "none"
            raise TypeError(f"act_kwargs: {act} has no parameter {name!r}; it takes: {takes}")
    return [float(as_number(act, name, act_kwargs.get(name, default))) for name, default in parameters.items()]


def as_number(op: str, name: str, value: Any) -> Any:
    """What stock takes for a number (one of Python's or numpy's, a tensor without dimensions) as one of Python's.

    Raises:
        TypeError: it is something else.
    """
    if isinstance(value, (int, float, torch.SymInt, torch.SymFloat)):
        return value
    if isinstance(value, Tensor) and value.dim() == 0 and not value.requires_grad and not value.is_complex():
        return value.item()
    if type(value).__module__ == "numpy" and isinstance(value, numbers.Real):
        return float(value)
    raise TypeError(f"{op}(): argument {name!r} must be a number, not {type(value).__name__}")


def check_tensors(op: str, **tensors: Any) -> None:
    """TypeError for the first argument that is no tensor. Only the first of them must not be None."""
    for i, (name, value) in enumerate(tensors.items()):
        if not isinstance(value, Tensor) and (i == 0 or value is not None):
            raise TypeError(f"{op}(): argument {name!r} must be Tensor, not {type(value).__name__}")


def signed_seed(seed: int | None) -> int | None:
    """Converts a 64-bit seed, signed or unsigned, to the int64 that operators take."""
    if seed is None:
        return None
    if not isinstance(seed, int):
        raise TypeError(f"dropout(): argument 'seed' must be int, not {type(seed).__name__}")
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed has to fit 64 bits, but got {seed}")
    return seed - 2**64 if seed >= 2**63 else seed


def check_dropout(p: float, mode: str = "inverted") -> None:
    """ValueError unless 0 <= p <= 1 and the mode is known; TypeError if p is not a number."""
    if not 0.0 <= as_number("dropout", "p", p) <= 1.0:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
    if mode not in ("inverted", "classic"):
        raise ValueError(f"mode has to be 'inverted' or 'classic', but got {mode!r}")
