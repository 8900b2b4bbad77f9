"""Shapes, layouts, dtypes and activations shared by the tests; each shape is named after its purpose."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from fusedtricks import _C, eager
from fusedtricks.functional import ACTIVATIONS
from fusedtricks.stock import activation_layer

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]

# Every activation with its defaults, then with parameters that make it behave differently.
ACTIVATION_CASES: list[tuple[str, dict[str, float]]] = [
    *((name, {}) for name in ACTIVATIONS),
    ("leaky_relu", {"negative_slope": 0.2}),
    ("leaky_relu", {"negative_slope": -0.5}),  # the result no longer determines the input's sign
    ("leaky_relu", {"negative_slope": 0.0}),
    ("elu", {"alpha": 1.7}),  # the derivative jumps at 0
    ("elu", {"alpha": -0.5}),  # not monotonic
    ("softplus", {"beta": 2.0, "threshold": 3.0}),  # values and derivative jump at 1.5
]


def activation_id(case: tuple[str, dict[str, float]]) -> str:
    name, kwargs = case
    return "-".join([name, *(f"{key}={value:g}" for key, value in kwargs.items())])


each_activation = pytest.mark.parametrize(
    ("act", "act_kwargs"), [pytest.param(*case, id=activation_id(case)) for case in ACTIVATION_CASES]
)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))

# Primes, whole vectors, and sizes on both sides of the points where the kernels split the work differently.
BATCH_NORM_SHAPES = {
    "2d_primes": (7, 13),
    "2d_more_rows_than_a_block": (1031, 33),
    "2d_more_channels_than_a_block": (3, 4099),
    "2d_channels_in_the_tens_of_thousands": (2, 20_011),
    "3d_rows_shorter_than_a_vector": (5, 3, 7),
    "3d_one_position": (9, 5, 1),
    "3d_rows_longer_than_a_page": (2, 3, 4099),
    "4d_primes": (3, 5, 7, 11),
    "4d_whole_vectors": (2, 16, 8, 8),
    "4d_one_channel": (4, 1, 9, 5),
    "4d_many_samples_of_short_planes": (331, 9, 5, 5),
    "4d_many_short_planes": (2, 131, 5, 5),
    "4d_many_long_planes": (3, 17, 16, 19),
    "4d_one_sample": (1, 6, 5, 9),
    "5d": (2, 3, 4, 3, 5),
    "6d": (2, 3, 2, 3, 2, 5),
}


# Over 12 MB in either dtype: results of this size bypass the caches.
STREAMED_SHAPES = {torch.float32: (5, 67, 101, 103), torch.bfloat16: (7, 131, 87, 89)}


def channels_last(t: Tensor) -> Tensor:
    """Dense with channels innermost: (N, L, C) storage, `torch.channels_last`, `torch.channels_last_3d`."""
    return t.movedim(1, -1).contiguous().movedim(-1, 1)


def reversed_dimensions(t: Tensor) -> Tensor:
    """Dense in the opposite order: neither contiguous nor channels last."""
    order = tuple(reversed(range(t.dim())))
    return t.permute(order).contiguous().permute(order)


def sliced(t: Tensor) -> Tensor:
    """Rows with gaps filled with NaN."""
    return torch.nn.functional.pad(t, (1, 2), value=float("nan"))[..., 1:-2]


def strided(t: Tensor) -> Tensor:
    """Every other element of longer rows; the elements between are NaN."""
    return torch.stack([t, torch.full_like(t, float("nan"))], -1)[..., 0]


def expanded(t: Tensor) -> Tensor:
    """One sample expanded to the whole batch; the values differ from `t`."""
    return t[:1].expand(t.shape)


def misaligned(t: Tensor) -> Tensor:
    """Contiguous, starting one element after an aligned address."""
    return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)


def misaligned_channels_last(t: Tensor) -> Tensor:
    return misaligned(t.movedim(1, -1)).movedim(-1, 1)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": Tensor.contiguous,
    "channels_last": channels_last,
    "reversed": reversed_dimensions,
    "sliced": sliced,
    "strided": strided,
    "expanded": expanded,
    "misaligned": misaligned,
    "misaligned_channels_last": misaligned_channels_last,
}
DENSE_LAYOUTS = ["contiguous", "channels_last", "reversed", "misaligned", "misaligned_channels_last"]


def derivative(x: Tensor, act: str, parameters: dict[str, float]) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(eager.activation(x, act, **parameters).sum(), x)[0]


@cache
def _kinks(act: str, parameters: tuple[tuple[str, float], ...]) -> list[float]:
    found = []
    x = torch.linspace(-20, 20, 40_001, dtype=torch.float64)
    slopes = derivative(x, act, dict(parameters))
    # Between neighbouring points, 0.001 apart, a derivative that does not jump changes by less.
    for i in (slopes.diff().abs() > 0.01).nonzero().flatten().tolist():
        ends = x[i : i + 2]
        while ends[1] - ends[0] > 1e-9:
            ends = torch.stack([ends[0], ends.mean(), ends[1]])
            larger = int(derivative(ends, act, dict(parameters)).diff().abs().argmax())
            ends = ends[larger : larger + 2]
        found.append(round(ends[0].item(), 6) + 0.0)
    return found


def kinks(act: str, act_kwargs: dict[str, Any]) -> list[float]:
    """Where the derivative jumps (for softplus also the value), so that rounding decides which side is used."""
    parameters = {**ACTIVATIONS[act], **act_kwargs}
    return _kinks(act, tuple(parameters.items()))


def distance_to_kinks(x: Tensor, act: str, act_kwargs: dict[str, Any]) -> float:
    return min(((x.double() - kink).abs().min().item() for kink in kinks(act, act_kwargs)), default=math.inf)


def stock_module(act: str, act_kwargs: dict[str, Any]) -> torch.nn.Module:
    return activation_layer(act, **act_kwargs)


def never_decreases(act: str, act_kwargs: dict[str, Any]) -> bool:
    return _C.activation_facts(act, list((ACTIVATIONS[act] | act_kwargs).values()))["never_decreases"]
