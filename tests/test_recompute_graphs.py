"""`recompute()` in whole graphs: gradients have the same bits, whoever keeps, changes or asks for an output, and when.

Where an output cannot be recomputed it is kept, or torch's own error is raised, as without `recompute()`.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

import fusedtricks
from fusedtricks import _C, functional, recompute

OUTPUTS = ("batch_norm_act_output", "act_dropout_output", "dropout_output", "feature_dropout_output")
CHANGED = "modified by an inplace operation"


class Net(nn.Module):
    """Convolutions around a fused layer, and what a test makes of them."""

    def __init__(self, act: str = "silu", p: float = 0.0) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (
            nn.Conv2d(3, 8, 3, padding=1),
            *(nn.Conv2d(8, 8, 3, padding=1) for _ in range(2)),
        )
        self.norm = fusedtricks.nn.BatchNormAct2d(8, act=act)

    def fused(self, x: Tensor) -> Tensor:
        return self.norm(self.conv1(x))


Forward = Callable[[Net, Tensor], Tensor]


def gradients(net: nn.Module, loss: Tensor, **options: Any) -> list[Tensor | None]:
    return list(torch.autograd.grad(loss, list(net.parameters()), allow_unused=True, **options))


def recomputed_by(run: Callable[[], Any]) -> tuple[Any, int]:
    """What a call gives, and how many outputs were computed again meanwhile."""
    with torch.profiler.profile() as profile:
        result = run()
    names = {f"fusedtricks::{name}" for name in OUTPUTS}
    return result, sum(event.count for event in profile.key_averages() if event.key in names)


def assert_same(a: list[Tensor | None], b: list[Tensor | None]) -> None:
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


def compare(forward: Forward, recomputed: int | None = None, context: Callable[[], Any] = recompute) -> None:
    """A forward and its backward within `recompute()` and without: gradients and buffers."""
    x, net = torch.randn(2, 3, 8, 8), Net()
    other = copy.deepcopy(net)
    expected = gradients(net, forward(net, x))
    with context():
        loss = forward(other, x)
    found, times = recomputed_by(lambda: gradients(other, loss))
    assert_same(found, expected)
    assert_same(list(other.buffers()), list(net.buffers()))
    assert recomputed is None or times == recomputed


# --- Who keeps an output ---


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


def several(net: Net, x: Tensor) -> Tensor:
    y = net.fused(x)
    return (net.conv2(y) * net.conv3(y) * F.max_pool2d(y, 3, 1, 1)).sum()


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


# --- Changes in place ---


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


# --- When a backward asks ---


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


def live_bytes(run: Callable[[], Any]) -> int:
    """How much more memory is in use after a call than before, while its result is alive."""
    gc.collect()
    with torch.profiler.profile(profile_memory=True) as profile:
        result = run()
    events = [event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    del result
    return sum(events)


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


# --- Other hooks, threads, errors ---


def hooks_now() -> Any:
    return torch._C._autograd._top_saved_tensors_default_hooks(False)


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


def alone(net: Net, x: Tensor) -> list[Tensor | None]:
    net = copy.deepcopy(net)
    return gradients(net, several(net, x))


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


# --- torch.compile ---


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


# --- fuse(recompute=True) ---


def small() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 2)
    )


def test_a_fused_model_recomputes():
    model, x = small(), torch.randn(2, 3, 8, 8)
    plain = fusedtricks.fuse(model)
    fused = fusedtricks.fuse(model, recompute=True)
    assert "recompute" not in str(fusedtricks.report(plain))
    assert str(fusedtricks.report(fused)).endswith("recompute(depth=1)")
    expected = gradients(plain, plain(x).square().sum())
    for each in (fused, copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        loss = each(x).square().sum()
        found, times = recomputed_by(lambda loss=loss, each=each: gradients(each, loss))
        assert times == 1
        assert_same(found, expected)
    assert hooks_now() is None
    assert type(fused) is not nn.Sequential and fused.state_dict().keys() == model.state_dict().keys()


def test_the_setting_of_a_fused_model_can_be_changed():
    model, x = small(), torch.randn(2, 3, 8, 8)
    fused = fusedtricks.fuse(model, recompute=recompute(depth=0))
    assert fusedtricks.report(fused).recompute == "recompute(depth=0)"
    assert fusedtricks.fuse(fused, recompute=recompute(depth=0)) is fused
    other = fusedtricks.fuse(fused, recompute=recompute(depth=None))
    assert other is not fused and fusedtricks.report(other).recompute == "recompute(depth=None)"
    assert fusedtricks.report(fused).recompute == "recompute(depth=0)"
    assert fusedtricks.fuse(fused, inplace=True) is fused and not fusedtricks.report(fused).recompute
    _, times = recomputed_by(lambda: fused(x).sum().backward())
    assert times == 0


def test_it_is_taken_off_with_the_rest():
    fused = fusedtricks.fuse(small(), recompute=True)
    for stock in (fusedtricks.unfuse(fused), fusedtricks.to_stock(fused)):
        assert type(stock) is nn.Sequential and not any("fusedtricks" in name for name in vars(stock))


class Changes(nn.Module):
    """Changes what it has concatenated, which `torch.cat` allows."""

    def __init__(self, returns: bool) -> None:
        super().__init__()
        self.norm, self.conv, self.returns = nn.BatchNorm2d(3), nn.Conv2d(6, 3, 1), returns

    def forward(self, x: Tensor) -> Any:
        part = x + 1
        y = self.conv(torch.relu(self.norm(self.conv(torch.cat([part, x], 1))).repeat(1, 2, 1, 1)))
        return (y, part) if self.returns else y + part.mul_(2).sum()


@pytest.mark.parametrize("returns", [True, False])
def test_torchs_cat_stays_where_what_it_joins_may_change(returns):
    model, x = Changes(returns), torch.randn(2, 3, 8, 8)

    def loss(model: nn.Module) -> Tensor:
        y = model(x)
        return y[0].sum() + y[1].mul_(2).sum() if returns else y.sum()

    fused = fusedtricks.fuse(model)
    assert_same(gradients(model := fusedtricks.fuse(model, recompute=True), loss(model)), gradients(fused, loss(fused)))


def test_an_error_in_a_models_forward_ends_it():
    fused = fusedtricks.fuse(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()), recompute=True)
    with pytest.raises(ValueError):
        fused(torch.randn(1, 3, 1, 1))
    assert hooks_now() is None and _C.may_recompute()


@pytest.mark.parametrize("wrong", [1, "yes", None])
def test_fuse_takes_a_bool_or_a_context(wrong):
    with pytest.raises(TypeError, match=r"argument 'recompute' must be bool or fusedtricks\.recompute, not "):
        fusedtricks.fuse(small(), recompute=wrong)


def test_models_without_code_of_their_own():
    single = fusedtricks.fuse(nn.BatchNorm2d(3), recompute=True)
    assert not fusedtricks.report(single).recompute
    traced = torch.fx.symbolic_trace(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()))
    fused = fusedtricks.fuse(traced, recompute=True)
    assert "with fusedtricks.recompute()" in str(fusedtricks.report(fused))
    assert fused(torch.randn(2, 3, 4, 4)).shape == (2, 3, 4, 4)
