"""Autocast, determinism, memory, and no waiting for the device."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from batch_norm_case import assert_matches_reference, fused, make_case
from cases import channels_last
from cuda_case import (
    CUDA,
    assert_bitwise_equal,
    each_op,
    random,
)
from rounding import HALF_TYPES
from torch import Tensor, nn

import fusedtricks.nn as ftnn
from fusedtricks.functional import activation, batch_norm_act, dropout

pytestmark = pytest.mark.cuda


# Autocast.


@pytest.mark.parametrize("dtype", HALF_TYPES, ids=["bfloat16", "float16"])
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
def test_autocast_changes_nothing_of_a_half_input(residual, dtype):
    """Input of the half type, parameters and statistics in float."""
    case = make_case((4, 6, 5, 7), dtype, param_dtype=torch.float32, residual=residual, act="silu", device=CUDA)
    expected = assert_matches_reference(case)
    with torch.autocast("cuda", dtype):
        assert_bitwise_equal(fused(case), expected)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", HALF_TYPES, ids=["bfloat16", "float16"])
def test_training_under_autocast(dtype, memory_format):
    """A network learns a batch by heart; fp16 with a scaled loss. Parameters and statistics stay in float."""
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        ftnn.BatchNormReLU2d(16),
        nn.Conv2d(16, 16, 3, padding=1, bias=False),
        ftnn.BatchNormAct2d(16, act="silu"),
        nn.Flatten(),
        ftnn.Dropout(0.1),
        nn.Linear(16 * 8 * 8, 4),
    ).to(CUDA, memory_format=memory_format)
    x = random(16, 3, 8, 8).to(CUDA).contiguous(memory_format=memory_format)
    target = torch.arange(16, device=CUDA) % 4
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    scaler = torch.amp.GradScaler("cuda", init_scale=1024.0, enabled=dtype is torch.float16)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype):
            output = model(x)
            assert output.dtype is dtype
            loss = nn.functional.cross_entropy(output, target)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    for name, t in model.state_dict().items():
        assert t.dtype is (torch.int64 if name.endswith("num_batches_tracked") else torch.float32), name
        assert t.isfinite().all(), name


# Promises of the runtime: determinism, memory, no waiting.


@each_op
def test_deterministic_algorithms_raise_nothing(prepare):
    run = prepare()
    torch.use_deterministic_algorithms(True)
    run()


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    """Copies to the host and synchronisation of a stream raise, in the thread of backward too."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_waiting_is_seen():
    x = torch.ones(3, device=CUDA)
    with waiting_is_an_error(), pytest.raises(RuntimeError, match="synchroniz"):
        x.sum().item()


@each_op
def test_nothing_waits_for_the_device(prepare):
    run = prepare()
    with waiting_is_an_error():
        run()


def test_no_module_waits_for_the_device(path):
    model = nn.Sequential(
        ftnn.BatchNormReLU2d(8, momentum=None),
        ftnn.LeakyReLU(0.1, inplace=True),
        ftnn.Dropout(0.2),
        ftnn.Dropout(0.2, mode="classic"),
    ).to(CUDA)
    x = random(4, 8, 5, 7).to(CUDA).requires_grad_()
    with waiting_is_an_error():
        for training in (True, False):
            model.train(training)
            torch.autograd.grad(model(x).sum(), [x, *model.parameters()])


MIB = 2**20
SIZE = (32, 64, 64, 64)  # 32 MiB in float
SLACK = 4 * MIB  # per-channel values and partial sums; the allocator rounds each large block up by at most one


def allocated() -> int:
    gc.collect()
    return torch.cuda.memory_allocated(CUDA)


KEPT: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], int]] = {
    # In tensors of the input's size: what is left when only the gradient function holds on to it.
    "batch_norm": (lambda h, _: batch_norm_act(h, None, None, act="silu", training=True), 1),
    "batch_norm_relu": (lambda h, _: batch_norm_act(h, None, None, act="relu", training=True), 1),
    "batch_norm_add_relu": (lambda h, r: batch_norm_act(h, None, None, residual=r, act="relu", training=True), 2),
    "batch_norm_add_silu": (lambda h, r: batch_norm_act(h, None, None, residual=r, act="silu", training=True), 2),
    "activation": (lambda h, _: activation(h, "gelu"), 1),
    "activation_in_place": (lambda h, _: activation(h, "leaky_relu", inplace=True), 1),
    "dropout": (lambda h, _: dropout(h, 0.5), 0),
    "dropout_in_place": (lambda h, _: dropout(h, 0.5, inplace=True), 0),
}


@pytest.mark.parametrize("layout", [Tensor.contiguous, channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(("function", "tensors"), KEPT.values(), ids=KEPT)
def test_memory_kept_for_backward(function, tensors, layout, path):
    x, r = (layout(torch.randn(SIZE, device=CUDA)).requires_grad_() for _ in range(2))
    before, one = allocated(), x.numel() * x.element_size()
    # Neither the input, the residual nor the result is held by anyone but the op.
    loss = function(x * 1, r * 1).sum()
    assert allocated() - before <= tensors * one + SLACK
    torch.autograd.grad(loss, [x, r], allow_unused=True)
    del loss
    assert allocated() - before <= SLACK


PEAKS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], int, int]] = {
    # In tensors, above what is there: of forward with its result, of backward with its gradients.
    "batch_norm": (lambda h, _: batch_norm_act(h, None, None, act="silu", training=True), 1, 1),
    "batch_norm_add": (lambda h, r: batch_norm_act(h, None, None, residual=r, act="relu", training=True), 1, 2),
    "activation": (lambda h, _: activation(h, "gelu"), 1, 1),
    "activation_in_place": (lambda h, _: activation(h, "leaky_relu", inplace=True), 0, 1),
    "dropout": (lambda h, _: dropout(h, 0.5), 1, 1),
    "dropout_in_place": (lambda h, _: dropout(h, 0.5, inplace=True), 0, 1),
}


@pytest.mark.parametrize("layout", [Tensor.contiguous, channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(("function", "forward", "backward"), PEAKS.values(), ids=PEAKS)
def test_peak_memory(function, forward, backward, layout, path):
    x, r, dy = (layout(torch.randn(SIZE, device=CUDA)) for _ in range(3))
    x.requires_grad_(), r.requires_grad_()
    h, one = x.clone(), dy.numel() * dy.element_size()

    before = allocated()
    torch.cuda.reset_peak_memory_stats(CUDA)
    y = function(h, r)
    assert torch.cuda.max_memory_allocated(CUDA) - before <= forward * one + SLACK

    before = allocated()
    torch.cuda.reset_peak_memory_stats(CUDA)
    gradients = torch.autograd.grad(y, [x, r], dy, allow_unused=True)
    assert torch.cuda.max_memory_allocated(CUDA) - before <= backward * one + SLACK
    assert gradients[0] is not None
