"""`batch_norm_act_max_pool2d` against its reference: values, gradients, ties, shapes, layouts, dtypes.

Inputs are rounded to bfloat16, so that two values of a window are either equal or differ by more than rounding errors.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from batch_norm_case import BatchNormCase, evaluate, magnitudes, make_case
from cases import LAYOUTS, STREAMED_SHAPES, channels_last, each_activation, each_dtype
from reference import batch_norm_act as reference_batch_norm_act
from rounding import assert_rounds_to
from torch import Tensor, nn

import fusedtricks.nn as ftnn
from fusedtricks.functional import batch_norm_act_max_pool2d
from fusedtricks.nn.batchnorm_pool import WINDOWS as WINDOW_ARGUMENTS

ops = torch.ops.fusedtricks

Windows = dict[str, Any]
STEM: Windows = {"kernel_size": 3, "stride": 2, "padding": 1}
SHAPE = (3, 5, 9, 11)

WINDOWS: dict[str, Windows] = {
    "stem": STEM,
    "stride_of_the_kernel": {"kernel_size": 2},
    "stride_of_one": {"kernel_size": 3, "stride": 1, "padding": 1},
    "gaps_between": {"kernel_size": 2, "stride": (5, 3)},
    "one_place": {"kernel_size": 1, "stride": 2},
    "not_square": {"kernel_size": (5, 3), "stride": (1, 3), "padding": (2, 1)},
    "dilated": {"kernel_size": (3, 2), "stride": 1, "padding": 1, "dilation": (2, 3)},
    "ceil_mode": {**STEM, "ceil_mode": True},
    "ceil_mode_one_window_less": {"kernel_size": 2, "stride": 4, "padding": 1, "ceil_mode": True},
    "all_rows": {"kernel_size": (13, 18)},
    "all_places_of_a_byte": {"kernel_size": (8, 32), "stride": 1, "padding": (4, 16)},
}

SHAPES = {
    "primes": (3, 5, 7, 11),
    "whole_vectors": (2, 16, 8, 34),
    "one_channel": (4, 1, 9, 5),
    "one_sample_of_few_channels": (1, 2, 61, 67),
    "many_samples_of_short_planes": (67, 9, 5, 5),
    "many_short_planes": (2, 131, 5, 5),
    "more_channels_than_a_segment": (2, 1100, 3, 3),
    "one_position": (9, 5, 1, 1),
    "one_column": (3, 4, 17, 1),
    "rows_longer_than_a_page": (1, 3, 3, 4099),
    "planes_longer_than_a_band": (2, 3, 203, 199),
    "channels_longer_than_a_band": (2, 64, 23, 67),
}


def pooled(function: Callable[..., Tensor], windows: Windows) -> Callable[..., Tensor]:
    return lambda **arguments: F.max_pool2d(function(**arguments), **windows)


def make_pool_case(
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    windows: Windows = STEM,
    layout: Callable[[Tensor], Tensor] = Tensor.contiguous,
    may_tie: bool = True,
    **options: Any,
) -> BatchNormCase:
    """`make_case` for max-pooling. `may_tie` rounds the input to bfloat16."""
    round_ = (lambda t: t.bfloat16().to(t.dtype)) if may_tie else (lambda t: t)
    case = make_case(shape, dtype, layout=lambda t: layout(round_(t)), **options)
    size = F.max_pool2d(torch.empty(shape, device="meta"), **windows).shape
    grad_output = torch.randn(size, generator=torch.Generator().manual_seed(1)).to(case.input)
    return replace(case, grad_output=grad_output)


def fused(case: BatchNormCase, windows: Windows = STEM, wanted: Any = None) -> dict[str, Tensor]:
    return evaluate(partial(batch_norm_act_max_pool2d, **windows), case, wanted)


def reference(case: BatchNormCase, windows: Windows = STEM, wanted: Any = None) -> dict[str, Tensor]:
    return evaluate(pooled(reference_batch_norm_act, windows), case.in_double(), wanted)


def assert_matches_reference(case: BatchNormCase, windows: Windows = STEM, wanted: Any = None) -> dict[str, Tensor]:
    actual, expected = fused(case, windows, wanted), reference(case, windows, wanted)
    assert actual.keys() == expected.keys()
    scales = magnitudes(case)
    # An element may be the maximum of several windows.
    scales["grad_input"] *= max(1.0, case.grad_output.numel() / case.input.numel()) * 4
    for name, value in expected.items():
        if not value.is_floating_point():
            assert torch.equal(actual[name].cpu(), value), name
            continue
        model = case.input if name == "output" else getattr(case, name.removeprefix("grad_"))
        assert actual[name].dtype is model.dtype, f"{name} is {actual[name].dtype}"
        assert_rounds_to(actual[name], value, scale=scales.get(name), name=name)
    return actual


@pytest.mark.each_isa
@each_dtype
@each_activation
def test_activation(act, act_kwargs, dtype, device):
    assert_matches_reference(make_pool_case(SHAPE, dtype, act=act, act_kwargs=act_kwargs, device=device))


@each_activation
def test_activation_channels_last_in_evaluation(act, act_kwargs, device):
    options = {"act": act, "act_kwargs": act_kwargs, "training": False, "device": device}
    assert_matches_reference(make_pool_case(SHAPE, layout=channels_last, **options))


@pytest.mark.each_isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("windows", WINDOWS.values(), ids=WINDOWS.keys())
def test_windows(windows, layout, dtype, device):
    shape = (2, 5, 13, 37)
    case = make_pool_case(shape, dtype, windows, layout=LAYOUTS[layout], act="silu", device=device)
    assert_matches_reference(case, windows)


@pytest.mark.each_isa
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_shape(shape, layout, device):
    assert_matches_reference(make_pool_case(shape, layout=LAYOUTS[layout], device=device))


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float64], ids=["float32", "bfloat16", "float64"]
)
@pytest.mark.parametrize("channels", [1, 3, 8, 24, 100])
def test_channels_that_do_and_do_not_fill_vectors(channels, dtype, device):
    case = make_pool_case((2, channels, 7, 6), dtype, layout=channels_last, act="leaky_relu", device=device)
    assert_matches_reference(case)


@pytest.mark.each_isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_layout(layout, dtype, device):
    case = make_pool_case((4, 16, 7, 9), dtype, layout=layout, device=device)
    assert_matches_reference(replace(case, grad_output=layout(case.grad_output)))


def test_grad_of_another_layout_than_the_input(device):
    case = make_pool_case(SHAPE, device=device)
    assert_matches_reference(replace(case, grad_output=channels_last(case.grad_output)))
    assert_matches_reference(replace(case, grad_output=torch.ones((), device=device).expand(case.grad_output.shape)))


@pytest.mark.each_isa
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_larger_than_the_caches(layout, device):
    case = make_pool_case(STREAMED_SHAPES[torch.float32], layout=LAYOUTS[layout], device=device)
    assert_matches_reference(case)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("shape", [SHAPE, (3, 1, 9, 7), (3, 5, 1, 1)], ids=str)
def test_memory_format_is_that_of_stock(shape, memory_format, device):
    x = torch.randn(shape, device=device).to(memory_format=memory_format).requires_grad_()
    y = batch_norm_act_max_pool2d(x, None, None, training=True, **STEM)
    stock = F.max_pool2d(x.detach(), **STEM)
    assert y.stride() == stock.stride() or (y.is_contiguous() and stock.is_contiguous())
    assert torch.autograd.grad(y.sum(), x)[0].stride() == x.stride()


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_parameters_in_float_for_half_inputs(dtype, training, device):
    options = {"param_dtype": torch.float32, "act": "silu", "training": training, "device": device}
    assert_matches_reference(make_pool_case(SHAPE, dtype, **options))


@pytest.mark.parametrize(
    "options",
    [{"affine": False}, {"track": False}, {"momentum": None}, {"momentum": 0.3}, {"affine": False, "training": False}],
    ids=str,
)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_options(options, layout, device):
    assert_matches_reference(make_pool_case(SHAPE, layout=LAYOUTS[layout], device=device, **options))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(
    "wanted", [s for n in (1, 2) for s in combinations(("input", "weight", "bias"), n)], ids="-".join
)
def test_only_some_inputs_require_grad(wanted, training, device):
    assert_matches_reference(make_pool_case(SHAPE, training=training, act="tanh", device=device), wanted=wanted)


def raw(x: Tensor, windows: Windows, act: str = "identity") -> tuple[Tensor, Tensor]:
    """Output and the maxima's indices in their plane, with a normalisation that changes nothing."""
    w = ftnn.BatchNormActMaxPool2d(x.shape[1], **windows)
    pairs = [2 * [v] if isinstance(v, int) else list(v) for v in (w.kernel_size, w.stride, w.padding, w.dilation)]
    zeros, ones = x.new_zeros(x.shape[1]), x.new_ones(x.shape[1])
    arguments = (x, zeros, ones, None, None, None, act, [], *pairs, w.ceil_mode, False, 0.1, 0.0)
    y, argmax, *_ = ops.batch_norm_act_max_pool2d(*arguments)
    (_, columns), (sh, sw), (ph, pw), (dh, dw) = pairs
    place = argmax.long()
    row = torch.arange(y.shape[2], device=x.device)[:, None] * sh - ph + place // columns * dh
    column = torch.arange(y.shape[3], device=x.device) * sw - pw + place % columns * dw
    return y, row * x.shape[3] + column


def special_values() -> Tensor:
    """Small integers, so that most windows have ties; some planes contain NaN or infinities, or nothing else."""
    x = torch.randint(-2, 3, (2, 6, 13, 37), generator=torch.Generator().manual_seed(0)).float()
    chance = torch.rand(x.shape, generator=torch.Generator().manual_seed(1))
    x[:, 1] = x[:, 1].masked_fill(chance[:, 1] < 0.2, float("nan"))
    x[:, 2] = x[:, 2].masked_fill(chance[:, 2] < 0.5, -float("inf"))
    x[:, 3] = x[:, 3].masked_fill(chance[:, 3] < 0.2, float("inf"))
    x[:, 4] = -float("inf")
    x[:, 5] = float("nan")
    return x


@pytest.mark.each_isa
@each_dtype
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("windows", WINDOWS.values(), ids=WINDOWS.keys())
def test_the_maximum_is_the_one_that_stock_takes(windows, layout, dtype, device):
    """The first of equal maxima, the last NaN, and an element of the image if all are -Inf."""
    x = LAYOUTS[layout](special_values().to(device, dtype))
    y, index = (t.cpu() for t in raw(x, windows))
    # On the CPU: for a window of only -Inf, stock's CUDA kernel may return the index of the image's first element.
    stock, stock_index = F.max_pool2d(x.cpu(), **windows, return_indices=True)
    torch.testing.assert_close(y, stock, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(index, stock_index)


def test_the_maximum_of_a_saturated_activation(device):
    """relu6 makes all values of a window equal; the first gets the gradient, which is zero."""
    x = 7 + torch.rand(2, 3, 9, 11, device=device)
    y, index = raw(x, STEM, "relu6")
    stock, stock_index = F.max_pool2d(F.relu6(x), **STEM, return_indices=True)
    assert torch.equal(y, stock) and torch.equal(index, stock_index)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("special", [float("inf"), -float("inf"), float("nan")])
def test_inf_and_nan_stay_in_their_channel(special, layout, device):
    case = make_pool_case((4, 6, 9, 7), layout=LAYOUTS[layout], act="silu", device=device)
    case.input[2, 3, 1, 4] = special
    actual, expected = fused(case), reference(case)
    assert actual["output"][:, 3].isnan().all()
    assert_rounds_to(actual["output"], expected["output"])
    assert actual["grad_input"][:, 3].isnan().all() and not actual["grad_input"][:, :3].isnan().any()


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_empty_batch(training, device):
    case = make_pool_case((0, 3, 9, 7), training=training, device=device)
    result = fused(case)
    assert result["output"].shape == (0, 3, 5, 4) and result["grad_input"].shape == (0, 3, 9, 7)
    assert torch.equal(result["running_mean"], case.running_mean) and not result["grad_weight"].any()
    assert result["num_batches_tracked"].item() == 3 + training


COMPOSED: dict[str, Windows] = {
    "more_places_than_a_byte": {"kernel_size": 17, "stride": 3, "padding": 8},
    "more_places_than_a_byte_in_a_row": {"kernel_size": (1, 257), "padding": (0, 128), "stride": 7},
}


@pytest.mark.parametrize("windows", COMPOSED.values(), ids=COMPOSED.keys())
def test_windows_that_are_composed(windows, device):
    case = make_pool_case((2, 3, 20, 19), windows=windows, act="silu", device=device)
    assert_matches_reference(case, windows)


def test_windows_without_an_element_are_composed(device):
    """Positions -1 and 2 of an image of size two: stock's result is -Inf."""
    windows = {"kernel_size": 2, "padding": 1, "dilation": 3}
    x = torch.randn(2, 3, 2, 2, device=device)
    y = batch_norm_act_max_pool2d(x, None, None, training=True, **windows)
    assert torch.equal(y, F.max_pool2d(F.batch_norm(x, None, None, training=True).relu(), **windows))


MISTAKES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "rank_3": ({"input": torch.randn(3, 8, 8)}, ValueError, "input"),
    "no_rows": ({"input": torch.randn(2, 3, 0, 8)}, RuntimeError, "input"),
    "no_tensor": ({"input": [1.0]}, TypeError, "input"),
    "weight": ({"weight": torch.ones(4)}, RuntimeError, "weight"),
    "momentum": ({"momentum": "much"}, TypeError, "momentum"),
    "eps": ({"eps": 0.0}, ValueError, "eps"),
    "act": ({"act": "rely"}, ValueError, "rely"),
    "kernel_zero": ({"kernel_size": 0}, RuntimeError, "kernel_size"),
    "kernel_three_numbers": ({"kernel_size": (3, 3, 3)}, RuntimeError, "kernel_size"),
    "kernel_float": ({"kernel_size": 3.0}, TypeError, "kernel_size"),
    "kernel_bool": ({"kernel_size": True}, TypeError, "kernel_size"),
    "kernel_none": ({"kernel_size": None}, TypeError, "kernel_size"),
    "kernel_text": ({"kernel_size": "3"}, TypeError, "kernel_size"),
    "kernel_too_large": ({"kernel_size": 11}, RuntimeError, "kernel_size"),
    "kernel_of_many_places_too_large": ({"kernel_size": 20}, RuntimeError, "Output size is too small"),
    "stride_zero": ({"stride": 0}, RuntimeError, "stride"),
    "stride_negative": ({"stride": (1, -1)}, RuntimeError, "stride"),
    "padding_negative": ({"padding": -1}, RuntimeError, "padding"),
    "padding_over_half": ({"padding": 2}, RuntimeError, "padding"),
    "dilation_zero": ({"dilation": 0}, RuntimeError, "dilation"),
    "ceil_mode": ({"ceil_mode": 1}, TypeError, "ceil_mode"),
}


@pytest.mark.parametrize(("change", "error", "names"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes(change, error, names, device):
    arguments: dict[str, Any] = {
        "input": torch.randn(2, 3, 8, 8),
        "running_mean": torch.zeros(3),
        "running_var": torch.ones(3),
        "num_batches_tracked": torch.tensor(0),
        "training": True,
        **STEM,
        **change,
    }
    arguments = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in arguments.items()}
    with pytest.raises(error, match=names):
        batch_norm_act_max_pool2d(**arguments)
    assert not arguments["running_mean"].any() and arguments["num_batches_tracked"] == 0
    if isinstance(arguments["input"], Tensor) and not {"weight", "momentum", "eps", "act"} & change.keys():
        windows = {name: arguments[name] for name in WINDOW_ARGUMENTS if name in arguments}
        if error is not ValueError and arguments["input"].is_floating_point():
            with pytest.raises(error):
                F.max_pool2d(arguments["input"], **windows)


@pytest.mark.parametrize("name", ["grad_output", "argmax"])
def test_mistakes_of_a_backward(name, device):
    x = torch.randn(2, 3, 8, 8, device=device)
    pairs = ([3, 3], [2, 2], [1, 1], [1, 1])
    y, argmax, mean, rstd = ops.batch_norm_act_max_pool2d(
        x, None, None, None, None, None, "relu", [], *pairs, False, True, 0.1, 1e-5
    )
    for change in (lambda t: t[..., :-1], lambda t: t.long(), lambda t: t[:1]):
        given = {"grad_output": y, "argmax": argmax}
        given[name] = change(given[name])
        with pytest.raises(RuntimeError, match=name):
            ops.batch_norm_act_max_pool2d_backward(
                given["grad_output"],
                x,
                None,
                None,
                given["argmax"],
                mean,
                rstd,
                "relu",
                [],
                *pairs,
                False,
                True,
                1e-5,
                [True, False, False],
            )


def check_gradients(case: BatchNormCase, windows: Windows) -> None:
    leaves = {name: t.detach().requires_grad_() for name, t in case.tensors(("input", "weight", "bias")).items()}

    def function(*tensors):
        running = {name: getattr(case, name) for name in ("running_mean", "running_var")}
        running = {name: t if t is None else t.clone() for name, t in running.items()}
        given = dict(zip(leaves, tensors, strict=True))
        return batch_norm_act_max_pool2d(**given, **running, **case.options(), **windows)

    assert torch.autograd.gradcheck(function, list(leaves.values()))
    assert torch.autograd.gradgradcheck(function, list(leaves.values()))


GRADIENTS = {
    "stem": {},
    "no_affine": {"affine": False},
    "channels_last": {"layout": channels_last},
    "evaluation": {"training": False},
    "evaluation_no_affine": {"training": False, "affine": False, "layout": channels_last},
    "not_square": {"windows": WINDOWS["not_square"], "shape": (2, 2, 5, 4)},
    "dilated": {"windows": WINDOWS["dilated"], "shape": (2, 2, 5, 4)},
}


@pytest.mark.parametrize("act", ["relu", "silu", "sigmoid"])
@pytest.mark.parametrize("variant", GRADIENTS.values(), ids=GRADIENTS.keys())
def test_gradgradcheck(variant, act, device):
    options = {"shape": (2, 2, 4, 3), "windows": STEM, **variant}
    case = make_pool_case(dtype=torch.float64, may_tie=False, margin=1e-3, act=act, device=device, **options)
    check_gradients(case, options["windows"])


def test_keeps_the_input_and_a_byte_an_output(device):
    case = make_pool_case((8, 4, 32, 32), device=device)
    x, storages = case.input.requires_grad_(), {}

    def pack(t: Tensor) -> Tensor:
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = batch_norm_act_max_pool2d(x, None, None, case.weight, case.bias, training=True, **STEM)
    assert sum(storages.values()) <= x.numel() * 4 + y.numel() + 4 * (2 * 8 + 2 * 4)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(8, 16, 40, 40), (3, 2, 203, 199)], ids=str)
def test_any_number_of_threads(shape, layout, restore_threads):
    case = make_pool_case(shape, act="silu", layout=LAYOUTS[layout])
    torch.set_num_threads(1)
    expected = fused(case)
    for threads in (2, 3, 7):
        torch.set_num_threads(threads)
        for name, value in fused(case).items():
            assert torch.equal(value, expected[name]), name


def loss(x: Tensor) -> Tensor:
    return batch_norm_act_max_pool2d(x, None, None, act="silu", training=True, **STEM).square().sum()


def test_transforms(device):
    x, direction = torch.randn(2, 2, 3, 6, 5, dtype=torch.float64, device=device)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(x), expected)
    value, tangent = torch.func.jvp(loss, (x,), (direction,))
    torch.testing.assert_close(value, loss(x))
    torch.testing.assert_close(tangent, (expected * direction).sum())


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compile(dynamic, device):
    torch._dynamo.reset()
    eager = ftnn.BatchNormActMaxPool2d(3, ceil_mode=True, act="silu", device=device, **STEM)
    twin = copy.deepcopy(eager)
    compiled = torch.compile(twin, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for size in [(2, 3, 8, 10), (4, 3, 6, 14)][: 1 + dynamic]:
        x = torch.randn(size, device=device)
        results = []
        for model in (compiled, eager):
            leaf = x.clone().requires_grad_()
            y = model(leaf)
            results.append([y, *torch.autograd.grad(y.square().sum(), [leaf, *eager.parameters()][:1])])
        torch.testing.assert_close(*results)
    torch.testing.assert_close(twin.state_dict(), eager.state_dict())
    torch._dynamo.reset()


def test_export_needs_no_operator_of_ours(device):
    model = ftnn.BatchNormActMaxPool2d(3, device=device, **STEM).eval()
    x = torch.randn(2, 3, 8, 10, device=device)
    program = torch.export.export(model, (x,))
    assert "fusedtricks" not in str(program.graph)
    torch.testing.assert_close(program.module()(x), model(x))


MODULES = [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}, {"eps": 1e-3}]


@pytest.mark.parametrize("options", MODULES, ids=str)
def test_module_trains_and_evaluates_as_stock(options, device):
    norm = nn.BatchNorm2d(5, device=device, **options)
    if norm.affine:
        nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    module = ftnn.BatchNormActMaxPool2d(5, device=device, **STEM, **options)
    module.load_state_dict(norm.state_dict())
    stock = nn.Sequential(norm, nn.ReLU(), nn.MaxPool2d(**STEM))
    for training in (True, True, False):
        x = torch.randn(SHAPE, device=device)
        results = []
        for model in (module.train(training), stock.train(training)):
            leaf = x.clone().requires_grad_()
            y = model(leaf)
            results.append([y, *torch.autograd.grad(y.square().sum(), [leaf, *model.parameters()])])
        torch.testing.assert_close(*results)
        torch.testing.assert_close(module.state_dict(), norm.state_dict())


def test_module_is_a_batch_norm_by_type_and_max_pool_by_arguments():
    module = ftnn.BatchNormActMaxPool2d(5, **STEM, act="leaky_relu", act_kwargs={"negative_slope": 0.2})
    assert isinstance(module, nn.BatchNorm2d) and module.state_dict().keys() == nn.BatchNorm2d(5).state_dict().keys()
    for text in ("kernel_size=3", "stride=2", "padding=1", "act=leaky_relu", "negative_slope=0.2"):
        assert text in repr(module)
    ours, norm = (inspect.signature(cls).parameters for cls in (ftnn.BatchNormActMaxPool2d, nn.BatchNorm2d))
    pool = inspect.signature(nn.MaxPool2d).parameters
    assert {n: ours[n].default for n in norm} == {n: p.default for n, p in norm.items()}
    shared = [n for n in pool if n != "return_indices"]
    assert list(ours)[1 : 1 + len(shared)] == shared
    assert {n: ours[n].default for n in shared} == {n: pool[n].default for n in shared}
    with pytest.raises(TypeError, match="kernel_size"):
        ftnn.BatchNormActMaxPool2d(5, 3.0)
    with pytest.raises(ValueError, match="4D"):
        module(torch.randn(5, 8, 8))


@pytest.mark.parametrize("act", ["identity", "relu"])
def test_conversion_to_sync_batch_norm_keeps_the_pooling(act):
    model = nn.Sequential(ftnn.BatchNormActMaxPool2d(5, **STEM, act=act))
    with pytest.raises(RuntimeError, match="pooling"):
        nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model)).eval()(torch.randn(SHAPE))
    state, x = model.state_dict(), torch.randn(SHAPE)
    expected = model.eval()(x)
    converted = ftnn.convert_sync_batchnorm(model)
    assert isinstance(converted[0], ftnn.SyncBatchNormActMaxPool2d) and "kernel_size=3" in repr(converted)
    assert converted.state_dict().keys() == state.keys()
    torch.testing.assert_close(converted.eval()(x), expected)
