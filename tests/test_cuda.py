"""What only a GPU can show: the CPU's values and masks, streams, graphs, memory, no waiting for the device."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import pytest
import reference
import torch
from batch_norm_case import BatchNormCase, assert_matches_reference, fused, magnitudes, make_case
from cases import LAYOUTS, channels_last, each_activation, each_dtype, misaligned
from hardware import generator_state
from rounding import HALF_TYPES, ROUNDINGS, assert_rounds_to
from torch import Tensor, nn

import fusedtricks.nn as ftnn
from fusedtricks.functional import activation, batch_norm_act, dropout

pytestmark = pytest.mark.cuda

CUDA = torch.device("cuda")
PATH = "FUSEDTRICKS_CUDA_PATH"
Results = dict[str, Tensor]


def random(*shape: int, seed: int = 0) -> Tensor:
    """The same on every device and in every thread."""
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


def batch_norm(*shape: int, **options) -> Callable[[], Results]:
    return partial(fused, make_case(shape, act="silu", device=CUDA, **options))


# Makes the inputs, and answers a function that runs an op forward and backward on them.
OPS: dict[str, Callable[[], Callable[[], Results]]] = {
    "batch_norm": lambda: batch_norm(8, 16, 40, 40),
    "batch_norm_add": lambda: batch_norm(8, 16, 40, 40, residual=True),
    "batch_norm_channels_last": lambda: batch_norm(8, 16, 40, 40, layout=channels_last, residual=True),
    "batch_norm_large": lambda: batch_norm(9, 96, 64, 64, dtype=torch.bfloat16, param_dtype=torch.float32),
    "batch_norm_matrix": lambda: batch_norm(4099, 67),
    "batch_norm_of_strides": lambda: batch_norm(8, 6, 20, 20, layout=LAYOUTS["sliced"], residual=True),
    "batch_norm_cumulative": lambda: batch_norm(8, 16, 9, 9, momentum=None),
    "batch_norm_evaluation": lambda: batch_norm(8, 16, 9, 9, training=False, residual=True),
    "batch_norm_empty": lambda: batch_norm(0, 16, 9, 9),
    "activation": lambda: elementwise(lambda x: activation(x, "gelu")),
    "activation_in_place": lambda: elementwise(lambda x: activation(x * 1, "leaky_relu", inplace=True)),
    "dropout": lambda: elementwise(lambda x: dropout(x, 0.3, seed=1)),
    "dropout_in_place": lambda: elementwise(lambda x: dropout(x * 1, 0.3, inplace=True, seed=1)),
    "dropout_channels_last": lambda: elementwise(lambda x: dropout(x, 0.3, seed=1), (9, 24, 33, 35), channels_last),
}
each_op = pytest.mark.parametrize("prepare", OPS.values(), ids=OPS)


def assert_bitwise_equal(actual: Results, expected: Results) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


def assert_same_but_for_roundings(actual: Results, expected: Results, case: BatchNormCase) -> None:
    """Two computations of one case in its dtype, each as far from the exact result as roundings take it."""
    scales = magnitudes(case)
    for name, value in expected.items():
        if not value.is_floating_point():
            assert torch.equal(actual[name].cpu(), value.cpu()), name
            continue
        dtype = case.input.dtype if name.startswith("grad_") else value.dtype
        inexact = (3 if dtype in HALF_TYPES else ROUNDINGS) * torch.finfo(dtype).eps
        assert_rounds_to(actual[name], value.double(), scale=scales.get(name), inexact=inexact, name=name)


@pytest.fixture(params=["auto", "two", "hold"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each way through batch_norm_act's kernels."""
    if request.param != "auto" and not path_is_read(monkeypatch):
        pytest.skip(f"this build does not read {PATH}")
    monkeypatch.setenv(PATH, request.param)
    return request.param


def path_is_read(monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether a call that could take either path raises for a third."""
    with monkeypatch.context() as patch:
        patch.setenv(PATH, "nowhere")
        try:
            batch_norm_act(torch.randn(4, 8, 5, device=CUDA), None, None, training=True)
        except ValueError:
            return True
        return False


# The values of the CPU.


@each_dtype
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "misaligned"])
@pytest.mark.parametrize("act", ["silu", "relu"])
def test_batch_norm_equals_the_cpu(act, layout, residual, dtype):
    param_dtype = torch.float64 if dtype is torch.float64 else torch.float32
    options = {"param_dtype": param_dtype, "layout": LAYOUTS[layout], "residual": residual, "act": act}
    for shape in ((6, 24, 17, 19), (5, 7, 9, 11)):
        case = make_case(shape, dtype, **options)
        moved = make_case(shape, dtype, device=CUDA, **options)
        assert torch.equal(moved.input.cpu(), case.input) and moved.input.stride() == case.input.stride()
        assert_same_but_for_roundings(fused(moved), fused(case), case)


@each_dtype
@each_activation
def test_activation_equals_the_cpu(act, act_kwargs, dtype):
    x, dy = torch.linspace(-20, 20, 4099).to(dtype), torch.linspace(-3, 3, 4099).to(dtype)
    function = partial(activation, act=act, **act_kwargs)
    actual = forward_and_backward(function, x.to(CUDA), dy.to(CUDA))
    expected = forward_and_backward(function, x, dy)
    inexact = (3 if dtype in HALF_TYPES else ROUNDINGS) * torch.finfo(dtype).eps
    for name, value in expected.items():
        assert_rounds_to(actual[name], value.double(), scale=3 * (1 + x.double().abs()), inexact=inexact, name=name)


CHANNELS = [1, 65, 96, 100, 2049, 65536]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("positions", [None, 1, 5], ids=["matrix", "one_position", "five_positions"])
def test_any_number_of_channels(positions, channels, dtype):
    shape = (3, channels) if positions is None else (3, channels, positions)
    options = {"param_dtype": torch.float32, "act": "silu", "device": CUDA}
    for residual in (False, True):
        for layout in (Tensor.contiguous, channels_last):
            assert_matches_reference(make_case(shape, dtype, layout=layout, residual=residual, **options))


# Dropout: one mask on every device.

MASK_LAYOUTS = ["contiguous", "channels_last", "misaligned", "misaligned_channels_last", "sliced"]
MASK_SHAPES = [(7, 65), (5, 3, 7), (3, 8, 9, 11), (2, 3, 17, 19), (4, 65, 6, 5), (2, 64, 33, 31), (2, 8, 3, 5, 3)]


def dropped(device: torch.device, x: Tensor, layout: Callable[[Tensor], Tensor], p: float) -> Results:
    """Output and gradient, with the layout made on the device: a copy would not keep a misaligned start."""
    dy = layout((x + 1).to(device))
    return forward_and_backward(lambda x: dropout(x, p, seed=0xFEDCBA9876543210), layout(x.to(device)), dy)


@each_dtype
@pytest.mark.parametrize("layout", MASK_LAYOUTS)
@pytest.mark.parametrize("shape", MASK_SHAPES, ids=str)
def test_dropout_equals_the_cpu(shape, layout, dtype):
    """Masks and values, bit for bit: a kept value is one product, rounded once."""
    x = random(*shape).to(dtype)
    actual, expected = (dropped(device, x, LAYOUTS[layout], 0.3) for device in (CUDA, torch.device("cpu")))
    for name, value in expected.items():
        assert torch.equal(actual[name].cpu() == 0, value == 0) and torch.equal(actual[name].cpu(), value), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_dropout_of_every_length_equals_the_cpu(dtype):
    for n in [*range(1, 40), 1023, 4097, 70_001]:
        x = random(n).to(dtype)
        for layout in (Tensor.contiguous, misaligned):
            actual, expected = (dropped(device, x, layout, 0.5) for device in (CUDA, torch.device("cpu")))
            for name, value in expected.items():
                assert torch.equal(actual[name].cpu(), value), (n, name)


def test_dropout_draws_seed_and_offset_from_the_generator():
    """Philox of the generator's seed and offset, which moves on by the least that torch allows, for any size."""
    torch.cuda.manual_seed(0x123456789AB)
    for n in (1037, 5, 40_001):
        seed, offset = generator_state(CUDA).view(torch.int64).tolist()
        y = dropout(torch.ones(n, device=CUDA), 0.5).cpu()
        assert torch.equal((y != 0)[:1037], reference.dropout_mask(min(n, 1037), 0.5, seed, offset))
        assert generator_state(CUDA).view(torch.int64).tolist() == [seed, offset + 4]


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


OTHERS = ["weight", "bias", "residual", "running_mean", "running_var", "num_batches_tracked"]


def arguments_of(case: BatchNormCase) -> dict[str, Tensor]:
    return case.tensors(["input", *OTHERS])


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


# Which kernels.

PATH_SHAPES = [
    (8, 64, 28, 28),
    (3, 100, 7, 7),
    (256, 96),
    (4099, 67),
    (16, 2049, 2, 2),
    (2, 5, 300, 301),
    (1, 3, 70_001),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("layout", [Tensor.contiguous, channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", PATH_SHAPES, ids=str)
def test_every_path_is_right_and_repeatable(shape, layout, residual, dtype, path):
    options = {"layout": layout, "residual": residual, "act": "silu", "device": CUDA}
    case = make_case(shape, dtype, param_dtype=torch.float32, **options)
    result = assert_matches_reference(case)
    assert_bitwise_equal(fused(case), result)


@pytest.mark.parametrize("shape", [(2, 1, 4_500_001), (1_200_000, 8)], ids=["one_channel", "eight_channels"])
def test_one_group_of_channels_that_all_shared_memory_cannot_hold(shape, path):
    """Over 34 MiB."""
    case = make_case(shape, act="silu", device=CUDA)
    result = assert_matches_reference(case)
    assert_bitwise_equal(fused(case), result)


@pytest.mark.parametrize("layout", [Tensor.contiguous, channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", PATH_SHAPES, ids=str)
def test_both_paths_give_the_same_values(shape, layout, monkeypatch):
    if not path_is_read(monkeypatch):
        pytest.skip(f"this build does not read {PATH}")
    case = make_case(shape, layout=layout, act="silu", residual=True, device=CUDA)
    results = {}
    for name in ("two", "hold"):
        monkeypatch.setenv(PATH, name)
        results[name] = fused(case)
    assert_same_but_for_roundings(results["hold"], results["two"], case)


def test_an_unknown_path_is_an_error_that_names_the_variable(monkeypatch):
    if not path_is_read(monkeypatch):
        pytest.skip(f"this build does not read {PATH}")
    arguments = arguments_of(make_case((4, 8, 5), device=CUDA))
    before = {name: t.clone() for name, t in arguments.items()}
    monkeypatch.setenv(PATH, "nowhere")
    with pytest.raises(ValueError, match=f"{PATH}.*nowhere|nowhere.*{PATH}"):
        batch_norm_act(**arguments, training=True)
    assert_bitwise_equal(arguments, before)
    monkeypatch.setenv(PATH, "auto")
    batch_norm_act(**arguments, training=True)


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
