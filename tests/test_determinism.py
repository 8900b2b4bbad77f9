"""Bitwise the same for any number of threads, from run to run, and under several Python threads at once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from batch_norm_case import fused, make_case
from cases import channels_last
from torch import Tensor

from fusedtricks.functional import activation, dropout

THREADS = (1, 2, 3, 7)


def elementwise(function: Callable[[Tensor], Tensor], *shape: int) -> dict[str, Tensor]:
    torch.manual_seed(1)
    x = torch.randn(shape, requires_grad=True)
    y = function(x)
    (dx,) = torch.autograd.grad(y, x, torch.randn(shape))
    return {"output": y.detach(), "grad_input": dx}


CALLS: dict[str, Callable[[], dict[str, Tensor]]] = {
    # More blocks of work than seven threads, in numbers that seven does not divide.
    "planes": lambda: fused(make_case((8, 16, 40, 40), act="silu", residual=True)),
    "planes_of_few_channels": lambda: fused(make_case((4, 2, 203, 199), act="silu")),
    "planes_bfloat16": lambda: fused(make_case((8, 16, 40, 40), torch.bfloat16, act="silu")),
    "rows": lambda: fused(make_case((8, 16, 40, 40), layout=channels_last, act="silu", residual=True)),
    "rows_of_many_channels": lambda: fused(make_case((64, 1031, 3, 3), layout=channels_last, act="silu")),
    "matrix": lambda: fused(make_case((4099, 67), act="silu")),
    "matrix_of_few_rows": lambda: fused(make_case((5, 20_011), act="silu")),
    "planes_streamed": lambda: fused(make_case((9, 96, 64, 64), act="silu")),
    "rows_streamed": lambda: fused(make_case((9, 96, 64, 64), layout=channels_last, act="silu")),
    "activation": lambda: elementwise(lambda x: activation(x, "gelu"), 1001, 403),
    "dropout": lambda: elementwise(lambda x: dropout(x, 0.3, seed=1), 1001, 403),
}


def assert_bitwise_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_any_number_of_threads(call, restore_threads):
    torch.set_num_threads(THREADS[0])
    expected = call()
    for threads in THREADS[1:]:
        torch.set_num_threads(threads)
        assert_bitwise_equal(call(), expected)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_run_to_run(call):
    expected = call()
    for _ in range(3):
        assert_bitwise_equal(call(), expected)


def test_several_python_threads_at_once():
    calls = [call for call in CALLS.values() if call not in (CALLS["activation"], CALLS["dropout"])]
    expected = [call() for call in calls]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for actual, wanted in zip(pool.map(lambda call: call(), calls), expected, strict=True):
                assert_bitwise_equal(actual, wanted)


def test_dropout_of_several_python_threads_never_shares_a_mask():
    """The generator is locked while a seed is drawn: a hundred calls, a hundred masks."""
    x = torch.ones(256)
    with ThreadPoolExecutor(4) as pool:
        masks = list(pool.map(lambda _: dropout(x, 0.5), range(100)))
    assert len({tuple(mask.tolist()) for mask in masks}) == 100
