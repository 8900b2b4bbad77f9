"""Bitwise equal results for any number of threads, from run to run, and with several Python threads at once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from batch_norm_case import fused, make_case
from cases import channels_last
from torch import Tensor

from fusedtricks.functional import activation, dropout, fractional_max_pool2d

THREADS = (1, 2, 3, 7)


def elementwise(function: Callable[[Tensor], Tensor], *shape: int, device: torch.device) -> dict[str, Tensor]:
    torch.manual_seed(1)
    x = torch.randn(shape, device=device, requires_grad=True)
    y = function(x)
    (dx,) = torch.autograd.grad(y, x, torch.randn_like(y))
    return {"output": y.detach(), "grad_input": dx}


CPU = torch.device("cpu")
DROP = {"p": 0.3, "seed": 1}
CALLS: dict[str, Callable[[torch.device], dict[str, Tensor]]] = {
    # More blocks of work than seven threads, and not a multiple of seven.
    "planes": lambda d: fused(make_case((8, 16, 40, 40), act="silu", residual=True, device=d)),
    "planes_of_few_channels": lambda d: fused(make_case((4, 2, 203, 199), act="silu", device=d)),
    "planes_bfloat16": lambda d: fused(make_case((8, 16, 40, 40), torch.bfloat16, act="silu", device=d)),
    "rows": lambda d: fused(make_case((8, 16, 40, 40), layout=channels_last, act="silu", residual=True, device=d)),
    "rows_of_many_channels": lambda d: fused(make_case((64, 1031, 3, 3), layout=channels_last, act="silu", device=d)),
    "matrix": lambda d: fused(make_case((4099, 67), act="silu", device=d)),
    "matrix_of_few_rows": lambda d: fused(make_case((5, 20_011), act="silu", device=d)),
    "planes_streamed": lambda d: fused(make_case((9, 96, 64, 64), act="silu", device=d)),
    "rows_streamed": lambda d: fused(make_case((9, 96, 64, 64), layout=channels_last, act="silu", device=d)),
    "planes_dropped": lambda d: fused(make_case((8, 16, 40, 40), act="silu", device=d, **DROP)),
    "rows_dropped": lambda d: fused(make_case((8, 16, 40, 40), layout=channels_last, residual=True, device=d, **DROP)),
    "matrix_dropped": lambda d: fused(make_case((4099, 67), act="silu", device=d, **DROP)),
    "activation": lambda d: elementwise(lambda x: activation(x, "gelu"), 1001, 403, device=d),
    "dropout": lambda d: elementwise(lambda x: dropout(x, 0.3, seed=1), 1001, 403, device=d),
    "fractional_max_pool": lambda d: elementwise(
        lambda x: fractional_max_pool2d(x, 3, output_ratio=0.5, act="elu", seed=1), 5, 7, 90, 91, device=d
    ),
}


def assert_bitwise_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_any_number_of_threads(call, restore_threads):
    torch.set_num_threads(THREADS[0])
    expected = call(CPU)
    for threads in THREADS[1:]:
        torch.set_num_threads(threads)
        assert_bitwise_equal(call(CPU), expected)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_run_to_run(call, device):
    expected = call(device)
    for _ in range(3):
        assert_bitwise_equal(call(device), expected)


def test_several_python_threads_at_once(device):
    calls = [call for call in CALLS.values() if call not in (CALLS["activation"], CALLS["dropout"])]
    expected = [call(device) for call in calls]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for actual, wanted in zip(pool.map(lambda call: call(device), calls), expected, strict=True):
                assert_bitwise_equal(actual, wanted)


def test_dropout_of_several_python_threads_never_shares_a_mask(device):
    """The generator is locked while a seed is drawn: a hundred calls give a hundred masks."""
    x = torch.ones(256, device=device)
    with ThreadPoolExecutor(4) as pool:
        masks = list(pool.map(lambda _: dropout(x, 0.5), range(100)))
    assert len({tuple(mask.tolist()) for mask in masks}) == 100
