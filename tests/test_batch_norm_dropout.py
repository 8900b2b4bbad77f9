"""`batch_norm_act(…, p=)`: same values as dropout after it, the same mask, and only a seed kept in addition."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from batch_norm_case import BatchNormCase, assert_matches_reference, evaluate, fused, make_case
from cases import (
    BATCH_NORM_SHAPES,
    LAYOUTS,
    STREAMED_SHAPES,
    channels_last,
    each_activation,
    each_dtype,
    misaligned_channels_last,
    sliced,
)
from hardware import generator_state
from test_batch_norm_act import SUBSETS, check_gradients, double_case, saved_bytes
from test_compile import fresh_compiler, run  # noqa: F401  (a fixture)
from torch import Tensor, nn

import fusedtricks.nn as ftnn
from fusedtricks.functional import batch_norm_act, dropout

SHAPE = (3, 5, 7, 11)  # primes, so that planes and rows begin anywhere in a block of four words
DROP = {"p": 1 / 3, "seed": 0x123456789ABCDEF}  # a scale that half types must round
ops = torch.ops.fusedtricks


@each_dtype
@each_activation
def test_activation(act, act_kwargs, dtype, device):
    assert_matches_reference(make_case(SHAPE, dtype, act=act, act_kwargs=act_kwargs, device=device, **DROP))


@each_activation
def test_activation_with_residual(act, act_kwargs, device):
    options = {"residual": True, "act": act, "act_kwargs": act_kwargs, "device": device, **DROP}
    assert_matches_reference(make_case(SHAPE, **options))
    assert_matches_reference(make_case(SHAPE, layout=channels_last, **options))


@pytest.mark.each_isa
@each_dtype
@pytest.mark.parametrize("layout", [Tensor.contiguous, channels_last])
@pytest.mark.parametrize("act", ["identity", "relu", "sigmoid", "gelu"])
def test_residual_of_every_dtype(act, layout, dtype, device):
    assert_matches_reference(make_case(SHAPE, dtype, layout=layout, residual=True, act=act, device=device, **DROP))


@pytest.mark.parametrize("shape", BATCH_NORM_SHAPES.values(), ids=BATCH_NORM_SHAPES.keys())
def test_shape(shape, device):
    assert_matches_reference(make_case(shape, act="silu", device=device, **DROP))


@pytest.mark.parametrize("shape", BATCH_NORM_SHAPES.values(), ids=BATCH_NORM_SHAPES.keys())
def test_shape_channels_last_with_residual(shape, device):
    options = {"layout": channels_last, "residual": True, "act": "silu", "device": device}
    assert_matches_reference(make_case(shape, torch.bfloat16, **options, **DROP))


# Positions per sample: as many as fit one word of bits, one more, whole blocks of four, and not.
@pytest.mark.parametrize("positions", [(1, 2), (1, 3), (4, 8), (3, 11), (5, 13)], ids=str)
@pytest.mark.parametrize("channels", [1, 3, 16, 65])
def test_shape_of_rows_that_begin_within_a_block_of_words(channels, positions, device):
    shape = (5, channels, *positions)
    assert_matches_reference(make_case(shape, layout=channels_last, act="silu", device=device, **DROP))
    assert_matches_reference(make_case(shape, torch.float16, layout=channels_last, act="relu", device=device, **DROP))


@pytest.mark.each_isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_layout(layout, dtype, device):
    case = make_case((5, 6, 7, 9), dtype, layout=layout, act="silu", device=device, **DROP)
    assert_matches_reference(replace(case, grad_output=layout(case.grad_output)))
    assert_matches_reference(replace(case, residual=layout(case.grad_output.flip(0))))


def dropout_behind_batch_norm(*args: Any, p: float, seed: int, **kwargs: Any) -> Tensor:
    return dropout(batch_norm_act(*args, **kwargs), p, seed=seed)


@pytest.mark.each_isa
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_larger_than_the_caches(layout, residual, device):
    """Compared with our two separate operators, because the reference takes seconds for masks of this size."""
    options = {"layout": LAYOUTS[layout], "residual": residual, "act": "silu", "device": device, **DROP}
    case = make_case(STREAMED_SHAPES[torch.float32], **options)
    actual, expected = fused(case), evaluate(dropout_behind_batch_norm, case)
    assert torch.equal(actual.pop("output"), expected.pop("output"))
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-4, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


def ones_behind_batch_norm(shape: tuple[int, ...], dtype: torch.dtype, layout: Any, device: Any, **drop: Any) -> Tensor:
    """The mask times its scale: weight 0 and bias 1 turn any input into ones."""
    x = layout(torch.randn(shape).to(dtype).to(device))
    weight, bias = torch.zeros(shape[1], device=device), torch.ones(shape[1], device=device)
    weight, bias = weight.to(dtype), bias.to(dtype)
    return batch_norm_act(x, None, None, weight, bias, act="identity", training=True, **drop)


@pytest.mark.each_isa
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["float64", "bfloat16"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("shape", [(7, 13), (8, 64), (5, 3, 17), (3, 6, 7, 9), (2, 8, 4, 8), (2, 3, 4, 3, 5)], ids=str)
def test_mask_is_that_of_dropout(shape, layout, dtype, device):
    y = ones_behind_batch_norm(shape, dtype, layout, device, **DROP)
    assert torch.equal(y, dropout(torch.ones(shape, dtype=dtype, device=device), **DROP))


def test_grad_of_a_sum(device):
    """`sum().backward()` passes a gradient with strides 0."""
    for layout in (Tensor.contiguous, channels_last):
        case = make_case(SHAPE, act="silu", layout=layout, device=device, **DROP)
        assert_matches_reference(replace(case, grad_output=torch.ones((), device=device).expand(SHAPE)))


@pytest.mark.parametrize("act", ["identity", "relu", "tanh"])
@pytest.mark.parametrize("wanted", SUBSETS, ids="-".join)
def test_only_some_inputs_require_grad(wanted, act, device):
    assert_matches_reference(make_case((3, 5, 11), residual=True, act=act, device=device, **DROP), wanted)
    if "residual" not in wanted:
        assert_matches_reference(make_case((3, 5, 11), act=act, layout=channels_last, device=device, **DROP), wanted)


@pytest.mark.parametrize("variant", [{"affine": False}, {"track": False}, {"momentum": None}], ids=str)
def test_variants(variant, device):
    assert_matches_reference(make_case(SHAPE, act="silu", device=device, **variant, **DROP))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_parameters_in_float_for_half_inputs(dtype, device):
    assert_matches_reference(make_case(SHAPE, dtype, param_dtype=torch.float32, act="gelu", device=device, **DROP))


@each_activation
def test_gradgradcheck(act, act_kwargs, device):
    drop = {"p": 0.4, "seed": 6}
    check_gradients(double_case(residual=True, act=act, act_kwargs=act_kwargs, device=device, **drop))
    check_gradients(double_case(act=act, act_kwargs=act_kwargs, layout=channels_last, device=device, **drop))


@pytest.mark.parametrize("variant", [{"shape": (4, 3)}, {"affine": False, "residual": True}], ids=str)
@pytest.mark.parametrize("act", ["relu", "silu"])
def test_gradgradcheck_of_variant(variant, act, device):
    check_gradients(double_case(act=act, p=0.4, seed=6, device=device, **variant))


@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("act", ["identity", "relu", "silu"])
def test_operator_drops_in_evaluation_too(act, residual, device):
    """The operator's `training` only selects the statistics; the function also disables dropout in evaluation."""
    case = make_case(SHAPE, act=act, training=False, residual=residual, device=device)
    leaves = [t.requires_grad_() for t in case.tensors(["input", "residual"]).values()]
    r = leaves[-1] if residual else None
    statistics = (case.running_mean, case.running_var, None)
    call = (case.input, *statistics, case.weight, case.bias, r, act, [], False, 0.1, case.eps)
    y = ops.batch_norm_act_dropout(*call, *DROP.values())[0]
    expected = dropout(ops.batch_norm_act(*call)[0], **DROP)
    torch.testing.assert_close(y, expected)
    grads = [torch.autograd.grad(t, leaves, case.grad_output) for t in (y, expected)]
    torch.testing.assert_close(*grads)


def test_operator_takes_no_result_that_does_not_tell(device):
    with torch.device(device):
        x, mean, rstd = torch.randn(4, 3), torch.zeros(3).double(), torch.ones(3).double()
        state = torch.tensor([1, 0])
    with pytest.raises(ValueError, match=r"output.*sigmoid"):
        ops.batch_norm_act_dropout_backward(
            x, x, None, None, None, x, mean, rstd, state, "sigmoid", [], True, 1e-5, 0.5, [True] * 4
        )


@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("layout", [Tensor.contiguous, channels_last])
@pytest.mark.parametrize("act", ["identity", "relu", "silu"])
def test_p_one_is_zero(act, layout, residual, device):
    """Result and gradients are zero; the statistics are updated as in any training step."""
    case = make_case(SHAPE, layout=layout, residual=residual, act=act, device=device)
    result, plain = fused(replace(case, p=1.0)), fused(case)
    for name, value in result.items():
        if name in ("running_mean", "running_var", "num_batches_tracked"):
            assert torch.equal(value, plain[name]), name
        else:
            assert torch.equal(value, torch.zeros_like(value)), name


def test_dropped_nan_is_zero(device):
    """Dropped values are selected, not multiplied by 0."""
    for layout in (Tensor.contiguous, channels_last):
        x = layout(torch.full(SHAPE, float("nan"), device=device))
        y = batch_norm_act(x, None, None, training=True, **DROP)
        assert torch.equal(y == 0, dropout(torch.ones(SHAPE, device=device), **DROP) == 0)


def with_generator(case: BatchNormCase, device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
    torch.manual_seed(7)
    return fused(case), generator_state(device)


@pytest.mark.parametrize("change", [{"p": 0.0}, {"p": 0.5, "training": False}, {"p": 0.0, "seed": 3}], ids=str)
def test_nothing_changes_where_nothing_is_dropped(change, device):
    case = make_case(SHAPE, act="silu", residual=True, device=device)
    before = with_generator(replace(case, training=change.get("training", True)), device)
    torch.testing.assert_close(with_generator(replace(case, **change), device), before, rtol=0, atol=0)


def test_the_generator_is_asked_once_for_a_seed(device):
    """As in dropout, for any size; never if a seed is given, nor in backward."""
    torch.manual_seed(7)
    before = generator_state(device)
    dropout(torch.ones(9, device=device))
    after = generator_state(device)
    for shape in ((4, 3), SHAPE):
        case = make_case(shape, device=device, p=0.5)
        first, state = with_generator(case, device)
        assert torch.equal(state, after)
        again, _ = with_generator(case, device)
        assert torch.equal(again["output"], first["output"])
        assert torch.equal(with_generator(replace(case, seed=3), device)[1], before)
    torch.manual_seed(7)
    outputs = [fused(case)["output"] for _ in range(2)]
    assert torch.equal(outputs[0], first["output"]) and not torch.equal(outputs[1], outputs[0])


@pytest.mark.parametrize("act", ["identity", "relu", "silu", "sigmoid"])
def test_keeps_the_input_and_a_seed(act, device):
    case = make_case((8, 4, 32, 32), act=act, device=device)
    x = case.input.requires_grad_()
    call = {"act": act, "training": True, "p": 0.5}
    assert saved_bytes(lambda: batch_norm_act(x, None, None, case.weight, case.bias, **call)) == (
        x.numel() * 4 + 2 * 4 * 4 + 2 * 4 * 8 + 16
    )


@pytest.mark.parametrize(("act", "kept"), [("identity", []), ("relu", ["output"]), ("silu", ["residual"])])
def test_keeps_with_a_residual(act, kept, device):
    """For relu the result, which the next layer keeps too: it shows the derivative and what was dropped."""
    case = make_case((8, 4, 32, 32), act=act, residual=True, device=device)
    x, residual = case.input.requires_grad_(), case.residual.requires_grad_()
    storages = {}

    def pack(t: Tensor) -> Tensor:
        storages[t.untyped_storage().data_ptr()] = t.numel()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = batch_norm_act(x, None, None, residual=residual, act=act, training=True, p=0.5)
    large = {data for data, numel in storages.items() if numel == x.numel()}
    tensors = {"output": y, "residual": residual}
    assert large == {x.data_ptr(), *(tensors[name].data_ptr() for name in kept)}


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4, 5), (4, 3, 0), (4, 0)], ids=str)
def test_empty(shape, device):
    result = fused(make_case(shape, residual=True, p=0.5, device=device))
    assert result["output"].shape == result["grad_input"].shape == result["grad_residual"].shape == shape
    assert result["num_batches_tracked"].item() == 4


def test_module(device):
    """Dropout in training only, even if evaluation normalises with batch statistics."""
    for tracks in (True, False):
        bn = ftnn.BatchNormAct2d(5, act="silu", p=0.5, track_running_stats=tracks, device=device)
        plain = ftnn.BatchNormAct2d(5, act="silu", track_running_stats=tracks, device=device)
        x = torch.randn(SHAPE, device=device)
        torch.manual_seed(3)
        y = bn(x)
        torch.manual_seed(3)
        torch.testing.assert_close(y, ftnn.Dropout(0.5)(plain(x)))
        assert torch.equal(bn.eval()(x), plain.eval()(x))
        assert bn.state_dict().keys() == plain.state_dict().keys()


def test_module_arguments_and_repr():
    bn = ftnn.BatchNormReLU1d(5, p=0.25)
    assert bn.p == 0.25 and repr(bn).endswith("act=relu, p=0.25)") and "p=" not in repr(ftnn.BatchNormReLU2d(5))[16:]
    assert copy.deepcopy(bn).p == 0.25 and ftnn.BatchNormReLU3d(5).p == 0.0
    del bn.__dict__["p"]  # as in a module pickled before the argument existed
    assert bn(torch.randn(4, 5)).shape == (4, 5)
    for make in (ftnn.BatchNormAct2d, ftnn.BatchNormReLU2d, ftnn.SyncBatchNormAct):
        for p in (-0.1, 1.1, float("nan")):
            with pytest.raises(ValueError, match="probability"):
                make(3, p=p)


def test_module_converted(device):
    bn = ftnn.BatchNormAct2d(5, act="gelu", p=0.5, device=device)
    x = torch.randn(SHAPE, device=device)
    converted = ftnn.convert_sync_batchnorm(copy.deepcopy(bn))
    assert converted.p == 0.5 and "act=gelu, p=0.5" in repr(converted)
    torch.testing.assert_close(converted.eval()(x), bn.eval()(x))
    if device.type == "cuda":  # synchronised BatchNorm trains only there
        torch.manual_seed(3)
        y = converted.train()(x)
        torch.manual_seed(3)
        torch.testing.assert_close(y, bn.train()(x))
    with pytest.raises(RuntimeError, match=r"BatchNormAct2d \(p=0.5\).*drop the dropout"):
        nn.SyncBatchNorm.convert_sync_batchnorm(ftnn.BatchNormAct2d(5, act="identity", p=0.5)).eval()(x.cpu())


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.usefixtures("fresh_compiler")
def test_compile(backend, device):
    """The eager values, gradients, statistics and masks."""
    if backend == "inductor" and device.type == "cuda":
        pytest.importorskip("triton")
    eager = ftnn.BatchNormReLU2d(5, p=0.5, device=device)
    twin = copy.deepcopy(eager)
    compiled = torch.compile(twin, fullgraph=True, backend=backend)
    x = torch.randn(SHAPE, device=device)
    results = []
    for model, module in ((eager, eager), (compiled, twin)):
        torch.manual_seed(5)
        results.append([*run(model, list(module.parameters()), x), *run(model, list(module.parameters()), x)])
    torch.testing.assert_close(*results)
    torch.testing.assert_close(twin.state_dict(), eager.state_dict())
    twin.eval(), eager.eval()
    torch.testing.assert_close(compiled(x), eager(x))


def test_export_in_evaluation_needs_no_operator_of_ours(device):
    model = nn.Sequential(ftnn.BatchNormReLU2d(5, p=0.5, device=device)).eval()
    x = torch.randn(SHAPE, device=device)
    program = torch.export.export(model, (x,))
    assert "fusedtricks" not in str(program.graph)
    torch.testing.assert_close(program.module()(x), model(x))


def test_autocast_promotes_a_residual_of_another_dtype(device):
    x, residual = torch.randn(2, *SHAPE, device=device)
    bn = ftnn.BatchNormReLU2d(5, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        y = batch_norm_act(x.bfloat16(), None, None, bn.weight, bn.bias, residual, training=True, **DROP)
        expected = dropout(bn(x.bfloat16(), residual), **DROP)
    assert y.dtype is expected.dtype is torch.float32
    torch.testing.assert_close(y, expected)


MISTAKES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "p_negative": ({"p": -0.1}, ValueError, "probability.*between 0 and 1"),
    "p_above_one": ({"p": 1.1}, ValueError, "probability.*between 0 and 1"),
    "p_nan": ({"p": float("nan")}, ValueError, "probability.*between 0 and 1"),
    "p_in_evaluation": ({"p": 1.1, "training": False}, ValueError, "probability"),
    "p_no_number": ({"p": "0.5"}, TypeError, "'p'"),
    "seed_no_integer": ({"p": 0.5, "seed": 0.5}, TypeError, "seed"),
    "seed_of_65_bits": ({"p": 0.5, "seed": 2**64}, ValueError, "seed"),
    "residual": ({"p": 0.5, "residual": torch.randn(4, 3)}, RuntimeError, "residual"),
}


@pytest.mark.parametrize(("change", "error", "message"), MISTAKES.values(), ids=MISTAKES)
def test_bad_input(change, error, message, device):
    case = make_case((4, 3, 5), device=device)
    arguments = case.tensors(["input", "running_mean", "running_var", "num_batches_tracked"])
    before, state = copy.deepcopy(arguments), generator_state(device)
    with pytest.raises(error, match=message):
        batch_norm_act(**arguments, **{"training": True} | change)
    assert torch.equal(generator_state(device), state)
    torch.testing.assert_close(arguments, before, rtol=0, atol=0)


@pytest.mark.parametrize("layout", [sliced, misaligned_channels_last], ids=lambda layout: layout.__name__)
def test_output_and_gradients_keep_the_memory_format(layout, device):
    case = make_case((2, 6, 5, 7), layout=layout, residual=True, device=device, **DROP)
    result = fused(case)
    for name in ("output", "grad_input", "grad_residual"):
        memory_format = torch.contiguous_format if layout is sliced else torch.channels_last
        assert result[name].is_contiguous(memory_format=memory_format), name
