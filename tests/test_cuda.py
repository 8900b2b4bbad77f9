"""The CUDA kernels' values and masks: those of the CPU, by every path through them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import reference
import torch
from batch_norm_case import assert_matches_reference, fused, make_case
from cases import LAYOUTS, channels_last, each_activation, each_dtype, misaligned
from cuda_case import (
    CUDA,
    PATH,
    Results,
    arguments_of,
    assert_bitwise_equal,
    assert_same_but_for_roundings,
    forward_and_backward,
    random,
)
from hardware import generator_state
from rounding import HALF_TYPES, ROUNDINGS, assert_rounds_to
from torch import Tensor

from fusedtricks import _C
from fusedtricks.functional import activation, batch_norm_act, dropout

pytestmark = pytest.mark.cuda


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


CHANNELS = [1, 3, 7, 65, 96, 100, 2049, 65536]


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
MASK_SHAPES = [
    (7, 65),
    (5, 3, 7),
    (3, 8, 9, 11),
    (2, 3, 17, 19),
    (4, 65, 6, 5),
    (2, 64, 33, 31),
    (2, 12, 11, 7),
    (3, 6, 5, 7),
    (2, 8, 3, 5, 3),
]


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
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
def test_groups_of_channels_that_take_turns(residual, layout, path):
    """Of 100 MiB: blocks meet again and again, while the next group is loaded to where the last one was."""
    case = make_case((64, 512, 28, 28), layout=layout, residual=residual, act="silu", device=CUDA)
    result = assert_matches_reference(case)
    for _ in range(3):
        assert_bitwise_equal(fused(case), result)


@pytest.fixture
def choose_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    def choose(name: str) -> None:
        monkeypatch.setenv(PATH, name)
        _C.reload_settings()

    yield choose
    monkeypatch.undo()
    _C.reload_settings()


@pytest.mark.parametrize("layout", [Tensor.contiguous, channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", PATH_SHAPES, ids=str)
def test_both_paths_give_the_same_values(shape, layout, choose_path):
    case = make_case(shape, layout=layout, act="silu", residual=True, device=CUDA)
    results = {}
    for name in ("two", "hold"):
        choose_path(name)
        results[name] = fused(case)
    assert_same_but_for_roundings(results["hold"], results["two"], case)


def test_an_unknown_path_is_an_error_that_names_the_variable(choose_path):
    arguments = arguments_of(make_case((4, 8, 5), device=CUDA))
    before = {name: t.clone() for name, t in arguments.items()}
    choose_path("nowhere")
    with pytest.raises(ValueError, match=f"{PATH}.*nowhere|nowhere.*{PATH}"):
        batch_norm_act(**arguments, training=True)
    assert_bitwise_equal(arguments, before)
    choose_path("auto")
    batch_norm_act(**arguments, training=True)
