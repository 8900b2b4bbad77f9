"""`batch_norm_act` against its reference: values, statistics, every gradient; shapes, layouts, dtypes."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
import torch
from batch_norm_case import (
    DIFFERENTIABLE,
    assert_matches_reference,
    evaluate,
    fused,
    make_case,
    reference,
)
from cases import (
    BATCH_NORM_SHAPES,
    LAYOUTS,
    STREAMED_SHAPES,
    channels_last,
    each_activation,
    each_dtype,
    expanded,
    misaligned_channels_last,
    sliced,
    stock_module,
)
from reference import batch_norm_act as reference_batch_norm_act
from rounding import assert_rounds_to

from fusedtricks.functional import batch_norm_act

SHAPE = (3, 5, 7, 11)  # primes: no vector, block or thread divides it


@pytest.mark.each_isa
@each_dtype
@each_activation
def test_activation(act, act_kwargs, dtype, device):
    assert_matches_reference(make_case(SHAPE, dtype, act=act, act_kwargs=act_kwargs, device=device))


@each_activation
def test_activation_with_residual(act, act_kwargs, device):
    assert_matches_reference(make_case(SHAPE, residual=True, act=act, act_kwargs=act_kwargs, device=device))


@each_activation
def test_activation_in_evaluation(act, act_kwargs, device):
    options = {"act": act, "act_kwargs": act_kwargs, "device": device}
    assert_matches_reference(make_case(SHAPE, residual=True, layout=channels_last, training=False, **options))


@pytest.mark.each_isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", BATCH_NORM_SHAPES.values(), ids=BATCH_NORM_SHAPES.keys())
def test_shape(shape, dtype, device):
    assert_matches_reference(make_case(shape, dtype, residual=True, act="silu", device=device))


@pytest.mark.each_isa
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_larger_than_the_caches(layout, residual, device):
    options = {"layout": LAYOUTS[layout], "residual": residual, "act": "silu", "device": device}
    dtype = torch.bfloat16 if residual else torch.float32
    assert_matches_reference(make_case(STREAMED_SHAPES[dtype], dtype, param_dtype=torch.float32, **options))


@pytest.mark.parametrize("shape", BATCH_NORM_SHAPES.values(), ids=BATCH_NORM_SHAPES.keys())
def test_shape_channels_last(shape, device):
    assert_matches_reference(make_case(shape, layout=channels_last, device=device))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("channels", [1, 3, 7, 15, 65, 100])
def test_shape_of_rows_that_begin_within_a_vector(channels, residual, dtype, device):
    """Rows shorter than a vector, and longer ones that end within one."""
    options = {"param_dtype": torch.float32, "residual": residual, "act": "silu", "device": device}
    for shape in ((2, channels), (3, channels, 1, 1), (5, channels, 11, 13)):
        assert_matches_reference(make_case(shape, dtype, layout=channels_last, **options))


@pytest.mark.each_isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_layout(layout, dtype, device):
    assert_matches_reference(make_case((5, 6, 7, 9), dtype, layout=layout, residual=True, device=device))


@pytest.mark.parametrize("shape", [(7, 13), (5, 3, 17), (2, 3, 4, 3, 5)], ids=["2d", "3d", "5d"])
@pytest.mark.parametrize("layout", [sliced, LAYOUTS["reversed"]], ids=["sliced", "reversed"])
def test_layout_of_other_ranks(layout, shape, device):
    assert_matches_reference(make_case(shape, layout=layout, training=False, device=device))


@pytest.mark.parametrize("layout", [channels_last, sliced, expanded], ids=lambda layout: layout.__name__)
def test_residual_and_grad_of_another_layout_than_the_input(layout, device):
    case = make_case((5, 6, 7, 9), residual=layout, device=device)
    assert_matches_reference(replace(case, grad_output=layout(case.grad_output)))
    case = make_case((5, 6, 7, 9), layout=channels_last, residual=torch.Tensor.contiguous, device=device)
    assert_matches_reference(replace(case, grad_output=layout(case.grad_output)))


def test_grad_of_a_sum(device):
    """`sum().backward()` passes a gradient with strides 0."""
    case = make_case(SHAPE, act="silu", device=device)
    assert_matches_reference(replace(case, grad_output=torch.ones((), device=device).expand(SHAPE)))


@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize(
    ("shape", "memory_format"),
    [
        ((2, 6, 5, 7), torch.contiguous_format),
        ((2, 6, 5, 7), torch.channels_last),
        ((2, 6, 3, 5, 7), torch.channels_last_3d),
    ],
)
def test_output_and_gradients_keep_the_memory_format(shape, memory_format, residual, device):
    layout = torch.Tensor.contiguous if memory_format is torch.contiguous_format else channels_last
    result = fused(make_case(shape, layout=layout, residual=residual, device=device))
    for name in ("output", "grad_input", *(["grad_residual"] if residual else [])):
        assert result[name].is_contiguous(memory_format=memory_format), name


@pytest.mark.each_isa
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
def test_parameters_in_float_for_half_inputs(dtype, residual, device):
    """Input and residual in a half type, parameters and statistics in float32, as under autocast."""
    options = {"residual": residual, "act": "silu", "device": device}
    case = make_case((4, 6, 5, 7), dtype, param_dtype=torch.float32, **options)
    assert_matches_reference(case)
    assert_matches_reference(replace(case, training=False))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_without_affine(training, device):
    case = make_case(SHAPE, affine=False, residual=True, training=training, device=device)
    assert_matches_reference(case)


@pytest.mark.parametrize("missing", ["weight", "bias"])
def test_without_weight_or_bias(missing, device):
    case = make_case(SHAPE, act="gelu", device=device)
    assert_matches_reference(replace(case, **{missing: None}))


def test_parameters_and_statistics_with_strides(device):
    """Columns of a matrix, which are read and also written in place."""
    case = make_case(SHAPE, act="silu", device=device)
    columns = torch.stack([case.weight, case.bias, case.running_mean, case.running_var], dim=1)
    weight, bias, mean, var = columns.unbind(1)
    result = batch_norm_act(case.input, mean, var, weight, bias, act="silu", training=True)
    expected = fused(case)
    assert torch.equal(result, expected["output"])
    assert torch.equal(mean, expected["running_mean"]) and torch.equal(var, expected["running_var"])
    assert torch.equal(columns[:, 0], case.weight) and torch.equal(columns[:, 1], case.bias)


def test_without_running_statistics(device):
    assert_matches_reference(make_case(SHAPE, track=False, residual=True, device=device))


@pytest.mark.parametrize("momentum", [0.0, 0.3, 1.0, None])
def test_momentum(momentum, device):
    assert_matches_reference(make_case(SHAPE, momentum=momentum, device=device))


def test_cumulative_average_over_batches(device):
    """momentum=None: after k batches the running statistics are the mean of the batches' statistics."""
    batches = [torch.randn(4, 3, 5, device=device) * k for k in (1, 2, 3)]
    mean, var = torch.zeros(3, device=device), torch.ones(3, device=device)
    count = torch.tensor(0, device=device)
    for batch in batches:
        batch_norm_act(batch, mean, var, training=True, momentum=None, num_batches_tracked=count)
    assert count.item() == 3
    doubles = torch.stack(batches).double()
    assert_rounds_to(mean, doubles.mean([1, 3]).mean(0).cpu(), name="running_mean")
    assert_rounds_to(var, doubles.transpose(1, 2).flatten(2).var(2).mean(0).cpu(), name="running_var")


def test_evaluation_leaves_statistics_alone(device):
    case = make_case(SHAPE, training=False, device=device)
    result = fused(case)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(result[name], getattr(case, name)), name


SUBSETS = [subset for n in range(1, 5) for subset in combinations(DIFFERENTIABLE, n)]


@pytest.mark.parametrize("wanted", SUBSETS, ids="-".join)
def test_only_some_inputs_require_grad(wanted, device):
    assert_matches_reference(make_case((3, 5, 11), residual=True, act="tanh", device=device), wanted)


@pytest.mark.parametrize("wanted", [("input",), ("weight",), ("residual",)], ids="-".join)
def test_only_some_inputs_require_grad_in_evaluation(wanted, device):
    assert_matches_reference(make_case((3, 5, 11), residual=True, training=False, device=device), wanted)


def test_input_that_is_its_own_residual(device):
    x = torch.randn(SHAPE, device=device, requires_grad=True)
    dy = torch.randn(SHAPE, device=device)
    (dx,) = torch.autograd.grad(batch_norm_act(x, None, None, residual=x, act="silu", training=True), x, dy)
    case = make_case(SHAPE, affine=False, track=False, residual=True, act="silu")
    twin = reference(replace(case, input=x.detach(), residual=x.detach(), grad_output=dy))
    assert_rounds_to(dx, twin["grad_input"] + twin["grad_residual"], scale=8.0)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def outlier_first() -> torch.Tensor:
    """A first row far from the rest, which breaks sums shifted by the first value."""
    x = normal(33, 6, 5, 7)
    x[0] = 1e4
    return x


def two_values(*shape: int) -> torch.Tensor:
    """-0.3 and 0.3: the squares are equal, so each step of a sum rounds the same way."""
    return 0.3 * normal(*shape).sign()


def ends_too_far_apart(rows: int, columns: int) -> torch.Tensor:
    """The difference between the first and last row overflows float32."""
    x = torch.zeros(rows, columns)
    x[0], x[-1] = 1.75e38, -1.75e38
    return x


HARD = {
    "mean_1e4_deviation_1e-2": lambda: 1e4 + 1e-2 * normal(32, 6, 9, 9),
    "constant_channel": lambda: torch.full((4, 6, 5, 7), 3.7),
    "constant_large_channel": lambda: torch.full((4, 6, 5, 7), -12345.678),
    "1e25": lambda: 1e25 * normal(4, 6, 5, 7),
    "1e-25": lambda: 1e-25 * normal(4, 6, 5, 7),
    "outlier_first": outlier_first,
    "two_samples": lambda: normal(2, 6, 1, 1),
    "two_values": lambda: two_values(64, 2, 64, 64),
    "channels_of_other_scales": lambda: normal(8, 6, 5, 7) * torch.logspace(-6, 6, 6)[None, :, None, None],
}


@pytest.mark.each_isa
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("make", HARD.values(), ids=HARD.keys())
def test_hard_statistics(make, layout, device):
    """Accurate to fp32 rounding of the normalised value at any scale of the input."""
    case = make_case(make().shape, layout=LAYOUTS[layout], act="silu", device=device)
    assert_matches_reference(replace(case, input=LAYOUTS[layout](make()).to(device)))


@pytest.mark.parametrize(
    "x",
    [
        1e4 + 1e-2 * normal(999, 37),
        two_values(100_003, 2),
        two_values(100_003, 1).relu(),
        ends_too_far_apart(101, 3),
    ],
    ids=["mean_1e4_deviation_1e-2", "two_values", "half_of_them_zero", "ends_too_far_apart"],
)
def test_hard_statistics_of_a_matrix(x, device):
    case = make_case(x.shape, act="gelu", device=device)
    assert_matches_reference(replace(case, input=x.to(device)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_half_statistics_of_a_far_mean(dtype, device):
    """Sums of 4096 values near 200 overflow fp16 and stall in bf16, so they need a wider type."""
    x = (200 + 4 * normal(64, 3, 64)).to(dtype)
    case = make_case(x.shape, dtype, param_dtype=torch.float32, act="silu", device=device)
    assert_matches_reference(replace(case, input=x.to(device)))


@pytest.mark.parametrize("shape", [(4, 6, 5, 7), (64, 6, 50, 70)], ids=["one_block", "many_blocks"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("special", [float("inf"), -float("inf"), float("nan")])
def test_inf_and_nan_stay_in_their_channel(special, layout, shape, device):
    """As in stock, the channel becomes NaN and the others are unaffected."""
    x = normal(*shape)
    x[2, 3, 1, 4] = special
    case = make_case(x.shape, layout=LAYOUTS[layout], residual=True, act="silu", device=device)
    case = replace(case, input=LAYOUTS[layout](x).to(device))
    actual, expected = fused(case), reference(case)
    assert actual["output"][:, 3].isnan().all()
    scales = {"grad_bias": 4 * (x.numel() / 6) ** 0.5}
    for name in ("output", "running_mean", "running_var", "grad_bias"):
        assert_rounds_to(actual[name], expected[name], scale=scales.get(name), name=name)
    assert actual["grad_input"][:, 3].isnan().all() and not actual["grad_input"][:, :3].isnan().any()


def test_nan_passes_a_relu(device):
    """`max(x, 0)` written as a comparison can lose NaN; stock's does not."""
    x = normal(4, 6, 5, 7)
    x[0, 0] = float("nan")
    for act in ("relu", "relu6", "hardswish", "leaky_relu", "elu"):
        assert batch_norm_act(x.to(device), None, None, act=act, training=True)[:, 0].isnan().all(), act


@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("act", ["identity", "relu", "leaky_relu", "sigmoid"])
def test_inf_and_nan_in_evaluation(act, layout, residual, device):
    """As in stock, they stay in their element, and the gradient is finite where the derivative is."""
    case = make_case(SHAPE, training=False, act=act, residual=residual, layout=LAYOUTS[layout], device=device)
    case.input[0, 0, 0, :3] = torch.tensor([float("inf"), -float("inf"), float("nan")])
    actual, expected = fused(case), reference(case)
    for name in ("output", "grad_input"):
        assert_rounds_to(actual[name], expected[name], scale=10.0, name=name)
    assert actual["grad_input"][0, 0, 0, :2].isfinite().all()


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4, 5), (4, 3, 0), (4, 0), (4, 0, 5, 5)], ids=str)
def test_empty(shape, training, device):
    """As in stock: statistics unchanged, parameter gradients zero, but the batch is counted."""
    case = make_case(shape, training=training, residual=True, device=device)
    result = fused(case)
    assert result["output"].shape == result["grad_input"].shape == result["grad_residual"].shape == shape
    assert torch.equal(result["running_mean"], case.running_mean)
    assert torch.equal(result["running_var"], case.running_var)
    assert not result["grad_weight"].any() and not result["grad_bias"].any()
    assert result["num_batches_tracked"].item() == 3 + training


def test_one_value_per_channel_in_evaluation(device):
    assert_matches_reference(make_case((1, 7), training=False, device=device))
    assert_matches_reference(make_case((1, 7, 1, 1), training=False, device=device))


def test_zero_eps_in_evaluation(device):
    assert_matches_reference(make_case(SHAPE, training=False, eps=0.0, device=device))


def double_case(shape=(2, 2, 2, 2), **options):
    """float64 data far enough from the kinks for finite differences with step 1e-6."""
    return make_case(shape, torch.float64, margin=1e-3, **options)


def check_gradients(case) -> None:
    names = list(case.tensors(DIFFERENTIABLE))
    leaves = [getattr(case, name).detach().requires_grad_() for name in names]
    statistics = {"running_mean": case.running_mean, "running_var": case.running_var}

    def function(*leaves):
        fresh = {name: t if t is None else t.clone() for name, t in statistics.items()}
        return batch_norm_act(**dict(zip(names, leaves, strict=True)), **fresh, **case.options())

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


@each_activation
def test_gradgradcheck(act, act_kwargs, device):
    check_gradients(double_case(residual=True, act=act, act_kwargs=act_kwargs, device=device))


VARIANTS = {
    "no_residual": {},
    "no_affine": {"affine": False, "residual": True},
    "no_statistics": {"track": False},
    "evaluation": {"training": False, "residual": True},
    "evaluation_no_affine": {"training": False, "affine": False},
    "channels_last": {"layout": channels_last, "residual": True},
    "channels_last_evaluation": {"layout": channels_last, "training": False},
    "matrix": {"shape": (4, 3)},
    "misaligned_3d_channels_last": {"shape": (2, 3, 4), "layout": misaligned_channels_last},
}


@pytest.mark.parametrize(
    ("act", "act_kwargs"),
    [("silu", {}), ("leaky_relu", {"negative_slope": -0.5}), ("sigmoid", {})],
    ids=["input_kept", "slope_negative", "result_kept"],
)
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_gradgradcheck_of_variant(variant, act, act_kwargs, device):
    check_gradients(double_case(**variant, act=act, act_kwargs=act_kwargs, device=device))


def test_gradcheck_of_double_precision_parameters_alone(device):
    case = double_case(act="mish", device=device)
    weight = case.weight.detach().requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda w: batch_norm_act(case.input, None, None, w, case.bias, act="mish", training=True), [weight]
    )


def saved_bytes(function) -> int:
    """Bytes of the distinct storages that `function` keeps for backward."""
    storages: dict[int, int] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        keep = function()
    assert keep is not None
    return sum(storages.values())


@pytest.mark.parametrize("act", ["relu", "silu", "gelu", "leaky_relu", "sigmoid"])
def test_keeps_the_input_alone(act, device):
    """Keeps x and, per channel, two doubles and the parameters."""
    case = make_case((8, 4, 32, 32), act=act, device=device)
    x = case.input.requires_grad_()
    kept = saved_bytes(lambda: batch_norm_act(x, None, None, case.weight, case.bias, act=act, training=True))
    assert kept <= x.numel() * x.element_size() + 4 * (2 * 8 + 2 * 4)


@pytest.mark.parametrize("act", ["relu", "silu"])
def test_keeps_two_tensors_with_a_residual(act, device):
    case = make_case((8, 4, 32, 32), act=act, residual=True, device=device)
    x = case.input.requires_grad_()
    kept = saved_bytes(
        lambda: batch_norm_act(x, None, None, case.weight, case.bias, case.residual, act=act, training=True)
    )
    assert kept <= 2 * x.numel() * x.element_size() + 4 * (2 * 8 + 2 * 4)


def test_keeps_nothing_without_grad(device):
    case = make_case((8, 4, 32, 32), device=device)
    assert saved_bytes(lambda: fused(case, [])) == 0


def test_defaults_are_those_of_stock(device):
    """relu, evaluation, eps 1e-5."""
    case = make_case(SHAPE, device=device, training=False)
    y = batch_norm_act(case.input, case.running_mean, case.running_var)
    stock = torch.nn.functional.batch_norm(case.input, case.running_mean, case.running_var).relu()
    torch.testing.assert_close(y, stock)


@each_activation
def test_reference_is_stock(act, act_kwargs):
    """Compares the reference itself with a sequence of `torch.nn` layers."""
    case = make_case(SHAPE, torch.float64, residual=True, act=act, act_kwargs=act_kwargs)
    ours = evaluate(reference_batch_norm_act, case)
    bn = torch.nn.BatchNorm2d(SHAPE[1], dtype=torch.float64)
    bn.load_state_dict({k: v.clone() for k, v in case.tensors(list(bn.state_dict())).items()})
    y = stock_module(act, act_kwargs)(bn(case.input) + case.residual).detach()
    torch.testing.assert_close(ours["output"], y)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(ours[name], getattr(bn, name))
