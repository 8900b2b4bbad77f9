"""`recompute()` keeps nothing longer, and nothing more, than a backward needs."""

from __future__ import annotations

import contextlib

import pytest
import torch
from recompute_case import Net, live_bytes, several
from torch import Tensor, nn

from fusedtricks import functional, recompute


def test_the_graph_is_freed_with_the_loss():
    net, x = Net(), torch.randn(2, 3, 8, 8)
    with recompute(depth=None):
        y = net.fused(x)
        for _ in range(3):
            y = functional.batch_norm_act(net.conv2(y), None, None, residual=y, training=True, act="relu")
        loss = net.conv3(y).sum()
    node, nodes = loss.grad_fn, []
    while node is not None and node.next_functions:
        nodes.append(node)
        node = node.next_functions[0][0]
    gone: list[int] = []
    for i, node in enumerate(nodes):
        node.metadata["token"] = _Token(i, gone)
    count = len(nodes)
    del y, loss, node, nodes
    assert sorted(gone) == list(range(count))


class _Token:
    def __init__(self, number: int, gone: list[int]) -> None:
        self._number, self._gone = number, gone

    def __del__(self) -> None:
        self._gone.append(self._number)


def test_many_steps_in_one_context_keep_nothing():
    net, x = Net(), torch.randn(2, 3, 8, 8)

    def steps() -> None:
        for _ in range(5):
            net.zero_grad()
            several(net, x).backward()

    with recompute():
        steps()
        net.zero_grad()
        assert live_bytes(steps) <= sum(p.nbytes for p in net.parameters()) + 1024


def test_a_part_of_a_large_tensor_is_not_kept_with_all_of_it():
    state = torch.randn(2, 3, requires_grad=True)

    def forward() -> Tensor:
        sequence = state.expand(500, 2, 3) * 2
        return functional.silu(functional.cat([sequence[-1], state], 1))

    with recompute():
        assert live_bytes(forward) < 1024


@pytest.mark.parametrize("nested", [False, True])
def test_what_a_result_follows_from_is_not_kept_for_nobody(nested):
    """A concatenation, and a joint, that no one keeps: nor are their parts."""
    convolutions = [nn.Conv2d(3, 8, 3, padding=1) for _ in range(2)]
    x = torch.randn(4, 3, 32, 32)

    def forward() -> Tensor:
        with recompute(), recompute() if nested else contextlib.nullcontext():
            parts = [convolution(x) for convolution in convolutions]
            return functional.cat(parts, 1).mean()

    loss = forward()
    assert live_bytes(forward) < 1024
    loss.backward()
