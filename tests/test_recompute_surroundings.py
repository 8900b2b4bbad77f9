"""`recompute()` beside others: errors, threads, hooks, checkpoints, torch.func, torch.compile."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from recompute_case import Net, alone, assert_same, compare, gradients, hooks_now, recomputed_by, several, small
from torch import Tensor
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from fusedtricks import _C, functional, recompute


def test_errors_and_nesting_restore_the_state():
    with contextlib.suppress(KeyError), recompute(), recompute(depth=0), recompute():
        raise KeyError
    assert hooks_now() is None and _C.may_recompute()
    context = recompute()
    with context, context:
        assert hooks_now() is not None
    assert hooks_now() is None
    with recompute():
        with recompute(depth=0):
            pass
        assert hooks_now() is not None


def test_a_thread_is_not_in_the_context_of_another():
    found: list[Any] = []
    with recompute():
        thread = threading.Thread(target=lambda: found.append(hooks_now()))
        thread.start()
        thread.join()
    assert found == [None]


def test_threads_recompute_side_by_side():
    nets = [Net() for _ in range(4)]
    x = torch.randn(2, 3, 8, 8)
    expected = [alone(net, x) for net in nets]
    found: dict[int, Any] = {}

    def run(i: int) -> None:
        for _ in range(5):
            net = copy.deepcopy(nets[i])
            with recompute():
                loss = several(net, x)
            found[i] = gradients(net, loss)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(nets))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, each in enumerate(expected):
        assert_same(found[i], each)


def test_a_backward_within_a_dispatch_mode_does_not_wait_for_ever():
    """It needs the GIL while it computes, and other threads have it while they save and free."""
    from torch.utils.flop_counter import FlopCounterMode

    net, x = Net(), torch.randn(2, 3, 8, 8)
    with recompute():
        y = net.fused(x)
        loss = net.conv2(y).sum()
    done = threading.Event()

    def save() -> None:
        with recompute():
            while not done.is_set():
                (y * net.norm.weight[0]).sum()

    thread = threading.Thread(target=save, daemon=True)
    thread.start()
    with FlopCounterMode(display=False):
        for _ in range(200):
            torch.autograd.grad(loss, [net.conv2.weight], retain_graph=True)
    done.set()
    thread.join()


def test_a_context_that_is_left_in_another_thread():
    context = recompute()
    errors: list[BaseException] = []

    def leave() -> None:
        try:
            context.__exit__(None, None, None)
        except RuntimeError as error:
            errors.append(error)

    with context:
        thread = threading.Thread(target=leave)
        thread.start()
        thread.join()
    assert "left in another thread" in str(errors)


def block(net: Net, x: Tensor) -> Tensor:
    return net.conv2(net.fused(x))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint_inside(reentrant):
    def forward(net: Net, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        return net.conv3(functional.silu(checkpoint(block, net, x, use_reentrant=reentrant))).square().sum()

    if not reentrant:
        compare(forward)
        return
    net, x = Net(), torch.randn(2, 3, 8, 8)
    other = copy.deepcopy(net)
    forward(net, x).backward()
    with recompute():
        loss = forward(other, x)
    loss.backward()
    assert_same([p.grad for p in other.parameters()], [p.grad for p in net.parameters()])


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint_outside(reentrant):
    def within(net: Net, x: Tensor) -> Tensor:
        with recompute():
            return block(net, x)

    net, x = Net(), torch.randn(2, 3, 8, 8).requires_grad_()
    other = copy.deepcopy(net)
    net.conv3(block(net, x)).square().sum().backward()
    other.conv3(checkpoint(within, other, x, use_reentrant=reentrant)).square().sum().backward()
    assert_same([p.grad for p in other.parameters()], [p.grad for p in net.parameters()])


def test_hooks_of_others_go_first():
    @contextlib.contextmanager
    def outside() -> Iterator[None]:
        with save_on_cpu(), recompute():
            yield

    @contextlib.contextmanager
    def inside() -> Iterator[None]:
        with recompute(), save_on_cpu():
            yield

    compare(several, recomputed=0, context=outside)
    compare(several, context=inside)
    seen: list[Tensor] = []
    with saved_tensors_hooks(lambda t: seen.append(t) or t, lambda t: t), recompute():
        Net().fused(torch.randn(2, 3, 8, 8))
    assert seen


def test_functorch():
    net, x = Net().eval(), torch.randn(2, 3, 8, 8)
    parameters = dict(net.named_parameters())

    def loss(parameters: dict[str, Tensor], context: Any) -> Tensor:
        with context:
            y = torch.func.functional_call(net.conv1, {k[6:]: v for k, v in parameters.items() if "conv1" in k}, x)
            return functional.silu(y).square().sum()

    expected = torch.func.grad(lambda p: loss(p, contextlib.nullcontext()))(parameters)
    found = torch.func.grad(lambda p: loss(p, recompute()))(parameters)
    assert_same(list(found.values()), list(expected.values()))


def test_without_gradients_nothing_happens():
    net = Net()
    with recompute(), torch.no_grad():
        assert net.fused(torch.randn(2, 3, 8, 8)).grad_fn is None
    with recompute(), torch.inference_mode():
        net.eval().fused(torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize("wrong", [-1, -5])
def test_a_negative_depth(wrong):
    with pytest.raises(ValueError, match=rf"recompute\(\): argument 'depth' is {wrong}, but must be at least 0"):
        recompute(depth=wrong)


@pytest.mark.parametrize("wrong", [1.0, "1", True])
def test_a_depth_of_another_type(wrong):
    with pytest.raises(TypeError, match=r"recompute\(\): argument 'depth' must be int or None, not "):
        recompute(depth=wrong)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled(backend):
    net, x = Net(), torch.randn(2, 3, 8, 8)
    expected = alone(net, x)

    def inner(x: Tensor) -> Tensor:
        with recompute():
            return several(net, x)

    torch.compiler.reset()
    loss = torch.compile(inner, backend=backend, fullgraph=True)(x)
    assert_same(gradients(net, loss), expected)
    torch.compiler.reset()
    with recompute():
        loss = torch.compile(lambda x: several(net, x), backend=backend, fullgraph=True)(x)
    assert_same(gradients(net, loss), expected)


def test_around_our_backend():
    model, x = small(), torch.randn(2, 3, 8, 8)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="fusedtricks")
    expected = gradients(model, compiled(x).square().sum())
    with recompute():
        loss = compiled(x).square().sum()
    found, times = recomputed_by(lambda: gradients(model, loss))
    assert times == 1
    assert_same(found, expected)


@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace")
def test_compiled_autograd():
    from torch._dynamo import compiled_autograd

    net, x = Net(), torch.randn(2, 3, 8, 8)
    expected = alone(net, x)
    torch.compiler.reset()
    for _ in range(2):
        net.zero_grad()
        with recompute():
            loss = several(net, x)
        with compiled_autograd._enable(torch.compile(backend="eager")):
            loss.backward()
        assert_same([p.grad for p in net.parameters()], expected)
