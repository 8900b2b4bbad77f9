"""`recompute()` in whole graphs: gradients have the same bits, whoever keeps, changes or asks for an output, and when.

Where an output cannot be recomputed it is kept, or torch's own error is raised, as without `recompute()`.
"""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from recompute_case import Net, assert_same, compare, gradients, recomputed_by, several
from torch import Tensor

from fusedtricks import functional, recompute

CHANGED = "modified by an inplace operation"


def test_one_consumer():
    compare(lambda net, x: net.conv2(net.fused(x)).square().sum(), recomputed=1)


def test_statistics_move_once():
    net = Net()
    with recompute():
        loss = several(net, torch.randn(2, 3, 8, 8))
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    loss.backward()
    assert net.norm.num_batches_tracked == 1
    assert all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())


def test_several_consumers_share_what_is_computed_once():
    compare(several, recomputed=1)


def views(net: Net, x: Tensor) -> Tensor:
    y = net.fused(x)
    weight = net.conv3.weight
    flat, turned, part = y.flatten(1)[:, 64:], y.transpose(1, 3).permute(0, 2, 1, 3), y[1:, :, ::2]
    of_flat = F.linear(flat, weight.flatten()[:448].view(1, -1)).sum()
    of_turned = (turned * weight[0, 0, 0, 0]).square().sum()
    return of_flat + of_turned + (part.expand(3, *part.shape) * weight[0, 0, 0, 1]).sum()


def test_views():
    compare(views, recomputed=1)


def test_an_output_that_is_alive_is_not_computed_again():
    kept: list[Tensor] = []

    def forward(net: Net, x: Tensor) -> Tensor:
        kept.append(net.fused(x))
        return net.conv2(kept[-1]).square().sum()

    compare(forward, recomputed=0)


def test_a_copy_for_itself_is_kept():
    compare(lambda net, x: (net.conv2(net.fused(x).detach()) + net.conv3(net.fused(x).half().float())).sum())


def test_an_output_changed_before_it_is_kept_is_kept_as_it_is():
    def by_autograd(net: Net, x: Tensor) -> Tensor:
        return net.conv2(net.fused(x).mul_(2)).square().sum()

    def behind_its_back(net: Net, x: Tensor) -> Tensor:
        y = net.fused(x)
        with torch.no_grad():
            y.mul_(2)
        return net.conv2(y).square().sum()

    def through_a_view(net: Net, x: Tensor) -> Tensor:
        y = net.fused(x)
        y[:, 0].mul_(3)
        return net.conv2(y).square().sum()

    def other_memory(net: Net, x: Tensor) -> Tensor:
        y = net.fused(x)
        y.data = y.detach() * 3
        return net.conv2(y).square().sum()

    for forward in (by_autograd, behind_its_back, through_a_view, other_memory):
        compare(forward, recomputed=0)


def test_in_place_consumers():
    compare(lambda net, x: net.conv2(F.relu(net.fused(x), inplace=True)).square().sum())
    compare(lambda net, x: net.conv2(functional.dropout(net.fused(x), 0.5, seed=3, inplace=True)).square().sum())


def change_the_output(net: Net, x: Tensor) -> Tensor:
    y = net.fused(x)
    loss = net.conv2(y).square().sum()
    y.mul_(2)
    return loss


def change_the_input(net: Net, x: Tensor) -> Tensor:
    h = net.conv1(x)
    loss = net.conv2(net.norm(h)).square().sum()
    with torch.no_grad():
        h.mul_(2)
    return loss


def change_the_weight(net: Net, x: Tensor) -> Tensor:
    loss = net.conv2(net.fused(x)).square().sum()
    with torch.no_grad():
        net.norm.weight.mul_(2)
    return loss


def change_another_tensor(net: Net, x: Tensor) -> Tensor:
    """That has nothing to do with a fused layer: hooks must not cost torch's check of its version."""
    h = net.conv1(x).tanh()
    loss = (net.conv2(h) + net.conv3(net.norm(h))).sum()
    with torch.no_grad():
        h.mul_(2)
    return loss


@pytest.mark.parametrize("forward", [change_the_output, change_the_input, change_the_weight, change_another_tensor])
def test_what_is_changed_after_it_was_kept_raises_torchs_error(forward):
    net, x = Net(), torch.randn(2, 3, 8, 8)
    with pytest.raises(RuntimeError, match=CHANGED):
        gradients(net, forward(net, x))
    with recompute():
        loss = forward(net, x)
    with pytest.raises(RuntimeError, match=rf"{CHANGED}: \[torch.FloatTensor \["):
        gradients(net, loss)


def test_tensors_of_inference_mode_are_no_sources():
    """They have no versions, so a change would go unnoticed."""

    def joined(net: Net, x: Tensor) -> Tensor:
        with torch.inference_mode():
            other = torch.ones(2, 8, 8, 8)
        y = F.conv2d(functional.cat([net.fused(x), other], 1), net.conv2.weight.repeat(1, 2, 1, 1))
        with torch.inference_mode():
            other.mul_(5)
        return y.square().sum()

    def activated(net: Net, x: Tensor) -> Tensor:
        with torch.inference_mode():
            other = torch.ones(2, 8, 8, 8)
        y = net.conv2(functional.act_dropout(other, net.conv1.bias.view(8, 1, 1), act="gelu", p=0.0))
        with torch.inference_mode():
            other.mul_(5)
        return y.square().sum()

    compare(joined)
    compare(activated)


class WritesWhatItSaved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return x.cos_().mul_(grad)


def test_a_backward_that_writes_what_it_saved_spoils_nothing_for_others():
    net, x = Net(), torch.randn(2, 3, 8, 8)
    y = net.fused(x)
    expected = gradients(net, (net.conv2(y) + y.sin()).square().sum())
    with recompute():
        y = net.fused(x)
        loss = (net.conv2(y) + WritesWhatItSaved.apply(y)).square().sum()
    del y
    assert_same(gradients(net, loss), expected)


def test_backward_again():
    net, x = Net(), torch.randn(2, 3, 8, 8)
    with recompute():
        loss = several(net, x)
    first = gradients(net, loss, retain_graph=True)
    second, times = recomputed_by(lambda: gradients(net, loss, retain_graph=True))
    assert times == 1
    assert_same(first, second)
    assert_same(first, gradients(net, loss))
    with pytest.raises(RuntimeError, match="Trying to backward through the graph a second time"):
        gradients(net, loss)


def test_a_consumer_outlives_the_backward_of_its_layer():
    net, x = Net(), torch.randn(2, 3, 8, 8)
    expected = torch.autograd.grad(net.conv3(net.fused(x)).square().sum(), [net.conv3.weight])
    with recompute():
        y = net.fused(x)
        first, second = net.conv2(y).square().sum(), net.conv3(y).square().sum()
    del y
    first.backward()
    assert_same(list(torch.autograd.grad(second, [net.conv3.weight])), list(expected))


def test_part_of_a_graph_and_then_the_rest():
    net, x = Net(), torch.randn(2, 3, 8, 8)
    expected = gradients(net, several(net, x))
    with recompute():
        loss = several(net, x)
    torch.autograd.grad(loss, [net.conv2.weight], retain_graph=True)
    assert_same(gradients(net, loss), expected)


@pytest.mark.parametrize("inside", [True, False])
def test_double_backward(inside):
    net, x = Net(), torch.randn(2, 3, 8, 8)

    def second(context: Any) -> list[Tensor | None]:
        with context:
            loss = several(net, x)
            if inside:
                first = torch.autograd.grad(loss, [net.conv1.weight, net.norm.weight], create_graph=True)
        if not inside:
            first = torch.autograd.grad(loss, [net.conv1.weight, net.norm.weight], create_graph=True)
        return gradients(net, sum(grad.square().sum() for grad in first))

    assert_same(second(recompute()), second(contextlib.nullcontext()))


def test_gradgradcheck():
    x, weight = torch.randn(3, 2, 4, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    tensors = (x.requires_grad_(), weight.requires_grad_())

    def f(x: Tensor, weight: Tensor) -> Tensor:
        with recompute():
            y = functional.batch_norm_act(x, None, None, weight, weight, training=True, act="tanh")
            z = functional.batch_norm_act(y * y, None, None, weight, None, y, training=True, act="sigmoid")
            return z * z * weight[:, None]

    assert torch.autograd.gradcheck(f, tensors) and torch.autograd.gradgradcheck(f, tensors)


def test_long_rows_of_layers():
    """Each of which follows from the one before: some are kept in between."""
    x = torch.randn(3, 5, requires_grad=True)
    norms = [(torch.rand(5) + 0.5).requires_grad_() for _ in range(3)]

    def row(x: Tensor) -> Tensor:
        for i in range(1000):
            x = functional.batch_norm_act(x, None, None, norms[i % 3], residual=x, training=True, act="tanh")
            x = functional.gelu(functional.cat([x, x]))[:3]
        return x.square().sum()

    expected = torch.autograd.grad(row(x), [x, *norms])
    with recompute(depth=None):
        loss = row(x)
    assert_same(list(torch.autograd.grad(loss, [x, *norms])), list(expected))


def test_an_outer_context_still_has_the_recipes_of_an_inner_one():
    def forward(net: Net, x: Tensor) -> Tensor:
        with recompute():
            y = net.fused(x)
        return net.conv2(y).square().sum()

    compare(forward, recomputed=1)
