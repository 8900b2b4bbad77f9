"""Shared by the CUDA tests: ops ready to run on a GPU, and comparisons of their results."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from batch_norm_case import BatchNormCase, fused, magnitudes, make_case
from cases import LAYOUTS, channels_last
from rounding import HALF_TYPES, ROUNDINGS, assert_rounds_to
from torch import Tensor

from fusedtricks.functional import activation, dropout, fractional_max_pool2d

CUDA = torch.device("cuda")
PATH = "FUSEDTRICKS_CUDA_PATH"
Results = dict[str, Tensor]


def random(*shape: int, seed: int = 0) -> Tensor:
    """Random values, the same on every device and in every thread."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def forward_and_backward(function: Callable[[Tensor], Tensor], x: Tensor, dy: Tensor) -> Results:
    x = x.detach().requires_grad_()
    y = function(x)
    (dx,) = torch.autograd.grad(y, x, dy)
    return {"output": y.detach(), "grad_input": dx}


def elementwise(
    function: Callable[[Tensor], Tensor],
    shape: tuple[int, ...] = (1001, 403),
    layout: Callable[[Tensor], Tensor] = Tensor.contiguous,
) -> Callable[[], Results]:
    x, dy = (layout(random(*shape, seed=seed).to(CUDA)) for seed in range(2))
    return partial(forward_and_backward, function, x, dy)


def pooling(layout: Callable[[Tensor], Tensor]) -> Callable[[], Results]:
    x, dy = layout(random(5, 24, 33, 35).to(CUDA)), layout(random(5, 24, 20, 21, seed=1).to(CUDA))
    return partial(forward_and_backward, lambda x: fractional_max_pool2d(x, 3, (20, 21), act="elu", seed=1), x, dy)


def batch_norm(*shape: int, **options) -> Callable[[], Results]:
    return partial(fused, make_case(shape, act="silu", device=CUDA, **options))


# Each creates inputs and returns a function that runs an op on them, forward and backward.
OPS: dict[str, Callable[[], Callable[[], Results]]] = {
    "batch_norm": lambda: batch_norm(8, 16, 40, 40),
    "batch_norm_add": lambda: batch_norm(8, 16, 40, 40, residual=True),
    "batch_norm_channels_last": lambda: batch_norm(8, 16, 40, 40, layout=channels_last, residual=True),
    "batch_norm_large": lambda: batch_norm(9, 96, 64, 64, dtype=torch.bfloat16, param_dtype=torch.float32),
    "batch_norm_matrix": lambda: batch_norm(4099, 67),
    "batch_norm_of_strides": lambda: batch_norm(8, 6, 20, 20, layout=LAYOUTS["sliced"], residual=True),
    "batch_norm_cumulative": lambda: batch_norm(8, 16, 9, 9, momentum=None),
    "batch_norm_evaluation": lambda: batch_norm(8, 16, 9, 9, training=False, residual=True),
    "batch_norm_dropout": lambda: batch_norm(8, 16, 40, 40, p=0.3, seed=1),
    "batch_norm_dropout_channels_last": lambda: batch_norm(8, 16, 39, 41, p=0.3, seed=1, layout=channels_last),
    "batch_norm_empty": lambda: batch_norm(0, 16, 9, 9),
    "activation": lambda: elementwise(lambda x: activation(x, "gelu")),
    "activation_in_place": lambda: elementwise(lambda x: activation(x * 1, "leaky_relu", inplace=True)),
    "dropout": lambda: elementwise(lambda x: dropout(x, 0.3, seed=1)),
    "dropout_in_place": lambda: elementwise(lambda x: dropout(x * 1, 0.3, inplace=True, seed=1)),
    "dropout_channels_last": lambda: elementwise(lambda x: dropout(x, 0.3, seed=1), (9, 24, 33, 35), channels_last),
    "fractional_max_pool": lambda: pooling(Tensor.contiguous),
    "fractional_max_pool_channels_last": lambda: pooling(channels_last),
}
each_op = pytest.mark.parametrize("prepare", OPS.values(), ids=OPS)


def assert_bitwise_equal(actual: Results, expected: Results) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


def assert_same_but_for_roundings(actual: Results, expected: Results, case: BatchNormCase) -> None:
    """Compares two computations of a case in its dtype; each may differ from the exact result by rounding."""
    scales = magnitudes(case)
    for name, value in expected.items():
        if not value.is_floating_point():
            assert torch.equal(actual[name].cpu(), value.cpu()), name
            continue
        dtype = case.input.dtype if name.startswith("grad_") else value.dtype
        inexact = (3 if dtype in HALF_TYPES else ROUNDINGS) * torch.finfo(dtype).eps
        assert_rounds_to(actual[name], value.double(), scale=scales.get(name), inexact=inexact, name=name)


OTHERS = ["weight", "bias", "residual", "running_mean", "running_var", "num_batches_tracked"]


def arguments_of(case: BatchNormCase) -> dict[str, Tensor]:
    return case.tensors(["input", *OTHERS])
