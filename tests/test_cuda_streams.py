"""Streams, threads, graphs and devices: what runs where, and when."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from batch_norm_case import assert_matches_reference, make_case
from cases import channels_last
from cuda_case import (
    CUDA,
    OPS,
    OTHERS,
    Results,
    arguments_of,
    assert_bitwise_equal,
    each_op,
    forward_and_backward,
    random,
)
from hardware import generator_state
from torch import Tensor

from fusedtricks.functional import activation, batch_norm_act, dropout

pytestmark = pytest.mark.cuda


# Streams and threads.


@each_op
def test_bitwise_the_same_from_run_to_run_and_on_another_stream(prepare):
    run, side = prepare(), torch.cuda.Stream()
    expected = run()
    side.wait_stream(torch.cuda.current_stream())
    for _ in range(3):
        assert_bitwise_equal(run(), expected)
        with torch.cuda.stream(side):
            actual = run()
        torch.cuda.current_stream().wait_stream(side)
        assert_bitwise_equal(actual, expected)


BUSY = 20_000_000  # cycles: some ten milliseconds


@pytest.mark.parametrize(
    "function",
    [
        lambda x: batch_norm_act(x, None, None, act="silu", training=True),
        lambda x: batch_norm_act(x, None, None, residual=x, act="silu", training=True),
        lambda x: activation(x, "gelu"),
        lambda x: dropout(x, 0.3, seed=1),
    ],
    ids=["batch_norm", "batch_norm_add", "activation", "dropout"],
)
def test_waits_for_the_current_stream_alone(function):
    """Inputs arrive late, behind a kernel that keeps the stream busy: whoever runs elsewhere reads NaN."""
    x, dy = random(16, 24, 20, 20).to(CUDA), random(16, 24, 20, 20, seed=1).to(CUDA)
    expected = forward_and_backward(function, x, dy)
    late_x, late_dy = (torch.full_like(x, float("nan")) for _ in range(2))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(BUSY)
        late_x.copy_(x)
        leaf = late_x.detach().requires_grad_()
        y = function(leaf)
        torch.cuda._sleep(BUSY)
        late_dy.copy_(dy)
        (dx,) = torch.autograd.grad(y, leaf, late_dy)
    torch.cuda.current_stream().wait_stream(side)
    assert_bitwise_equal({"output": y.detach(), "grad_input": dx}, expected)


def test_python_threads_on_streams_of_their_own(path):
    """Kernels whose blocks wait for each other do not keep those of another stream from starting."""
    runs = [prepare() for prepare in OPS.values()]
    expected = [run() for run in runs]
    torch.cuda.synchronize()

    def on_its_own_stream(run: Callable[[], Results]) -> Results:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            results = run()
        stream.synchronize()
        return results

    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for actual, wanted in zip(pool.map(on_its_own_stream, runs), expected, strict=True):
                assert_bitwise_equal(actual, wanted)


# CUDA graphs.


def capture(step: Callable[[], list[Tensor]]) -> tuple[torch.cuda.CUDAGraph, list[Tensor]]:
    """The step's graph and the places of its results, after runs on a side stream that torch asks for."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    return graph, results


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("layout", [Tensor.contiguous, channels_last], ids=["contiguous", "channels_last"])
def test_graph_of_a_training_step(layout, residual, momentum, path):
    """Every replay is the eager step: new masks, running statistics and batch count that move on."""
    case = make_case((8, 16, 9, 9), layout=layout, residual=residual, device=CUDA)
    x, dy = case.input.clone(), case.grad_output
    beginning = [case.running_mean, case.running_var, case.num_batches_tracked]
    state = [t.clone() for t in beginning]

    def step() -> list[Tensor]:
        inputs = [t for t in (x, case.weight, case.bias, case.residual) if t is not None]
        leaves = [t.detach().requires_grad_() for t in inputs]
        options = {"training": True, "momentum": momentum, "num_batches_tracked": state[2]}
        y = batch_norm_act(leaves[0], *state[:2], *leaves[1:], **options)
        z = dropout(y, 0.5)
        return [z.detach(), *torch.autograd.grad(z, leaves, dy)]

    def three_steps(one: Callable[[], list[Tensor]]) -> list[list[Tensor]]:
        torch.cuda.manual_seed(11)
        for t, value in zip(state, beginning, strict=True):
            t.copy_(value)
        found = []
        for k in range(3):
            x.copy_(case.input.roll(k, 0))
            found.append([t.clone() for t in (*one(), *state)])
        return found

    graph, places = capture(step)

    def replay() -> list[Tensor]:
        graph.replay()
        return places

    replayed = three_steps(replay)
    assert [int(found[-1]) for found in replayed] == [4, 5, 6]
    for actual, expected in zip(replayed, three_steps(step), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("inplace", [False, True])
def test_graph_draws_new_masks_at_every_replay(inplace):
    """Two calls in the graph, five replays, an eager call after them: no mask twice; backward takes the forward's."""
    ones = torch.ones(3, 7, 33, device=CUDA)

    def step() -> list[Tensor]:
        found = []
        for _ in range(2):
            x = ones.detach().requires_grad_()
            y = dropout(x * 1, 0.5, inplace=inplace)
            found += [y.detach(), *torch.autograd.grad(y, x, ones)]
        return found

    graph, (first, first_gradient, second, second_gradient) = capture(step)
    masks = []
    for _ in range(5):
        graph.replay()
        assert torch.equal(first, first_gradient) and torch.equal(second, second_gradient)
        masks += [first.clone(), second.clone()]
    masks.append(dropout(ones, 0.5))
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) == 11
    for mask in masks:
        assert set(mask.unique().tolist()) == {0.0, 2.0}


def test_graph_of_a_given_seed_keeps_its_mask():
    x = torch.ones(999, device=CUDA)
    state = generator_state(CUDA)
    graph, (y,) = capture(lambda: [dropout(x, 0.5, seed=4)])
    for _ in range(2):
        graph.replay()
        assert torch.equal(y, dropout(x, 0.5, seed=4))
    assert torch.equal(generator_state(CUDA), state)


def test_graph_of_an_activation():
    x, dy = random(33, 65).to(CUDA), random(33, 65, seed=1).to(CUDA)
    graph, places = capture(lambda: list(forward_and_backward(lambda x: activation(x, "mish"), x, dy).values()))
    for scale in (1.0, 0.5):
        x.mul_(scale)
        graph.replay()
        expected = forward_and_backward(lambda x: activation(x, "mish"), x, dy)
        torch.testing.assert_close(places, list(expected.values()), rtol=0, atol=0)


# Devices.

two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


@two_gpus
def test_second_device():
    """The tensor's device is the one that counts, whichever is current."""
    second = torch.device("cuda", 1)
    for layout in (Tensor.contiguous, channels_last):
        case = make_case((5, 6, 7, 9), layout=layout, residual=True, act="silu", device=second)
        assert all(t.device == second for t in assert_matches_reference(case).values())
    x = random(1001, 33)
    for function in (lambda x: activation(x, "gelu"), lambda x: dropout(x, 0.3, seed=1)):
        first, other = (forward_and_backward(function, x.to(d), x.to(d)) for d in (CUDA, second))
        assert_bitwise_equal({name: t.to(CUDA) for name, t in other.items()}, first)
    assert torch.cuda.current_device() == 0


@two_gpus
def test_second_device_has_a_generator_of_its_own():
    first, second = (torch.device("cuda", i) for i in range(2))
    before = generator_state(first)
    seed, offset = generator_state(second).view(torch.int64).tolist()
    dropout(torch.ones(99, device=second))
    assert torch.equal(generator_state(first), before)
    assert generator_state(second).view(torch.int64).tolist() == [seed, offset + 4]


@pytest.mark.parametrize("name", OTHERS)
def test_a_tensor_left_on_the_cpu_is_named(name):
    arguments = arguments_of(make_case((4, 3, 5), residual=True, device=CUDA))
    arguments[name] = arguments[name].cpu()
    before = {name: t.clone() for name, t in arguments.items()}
    with pytest.raises(RuntimeError, match=f"{name} is on device cpu, input on cuda:0"):
        batch_norm_act(**arguments, training=True)
    assert_bitwise_equal(arguments, before)


def test_an_input_left_on_the_cpu_is_named():
    arguments = arguments_of(make_case((4, 3, 5), residual=True, device=CUDA))
    with pytest.raises(RuntimeError, match=r"is on device cuda:0, input on cpu"):
        batch_norm_act(**(arguments | {"input": arguments["input"].cpu()}), training=True)
