"""`recompute()`: what an op's output is computed into again has the same bits, whatever the op, shape and dtype."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from batch_norm_case import BatchNormCase, make_case
from cases import (
    BATCH_NORM_SHAPES,
    STREAMED_SHAPES,
    channels_last,
    each_activation,
    each_dtype,
    reversed_dimensions,
)
from torch import Tensor

from fusedtricks import _C, functional, recompute

LAYOUTS = {"contiguous": Tensor.contiguous, "channels_last": channels_last, "reversed": reversed_dimensions}
each_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


def outputs_again(forward: Callable[[], Tensor], depth: int | None = 1) -> tuple[Tensor, Tensor]:
    """An op's output, and what is computed instead of it from what is kept; the output itself is gone by then."""
    with recompute(depth=depth):
        y = forward()
        saved = _C.save_tensor(y)
    is_recipe, reason = _C.describe_saved(saved)
    assert is_recipe, reason
    expected, strides = y.detach().clone(), y.stride()
    del y
    _ = torch.full_like(expected, float("nan"))  # where the output was, perhaps
    again = _C.load_tensor(saved)
    assert again.stride() == strides and again.dtype == expected.dtype and not again.requires_grad
    return expected, again


def assert_same_bits(a: Tensor, b: Tensor) -> None:
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    assert torch.equal(a.contiguous().view(integers), b.contiguous().view(integers))


def check_again(forward: Callable[[], Tensor], **options: Any) -> None:
    assert_same_bits(*outputs_again(forward, **options))


def batch_norm(case: BatchNormCase, **changed: Any) -> Callable[[], Tensor]:
    tensors = [getattr(case, name) for name in ("input", "running_mean", "running_var", "weight", "bias")]
    options = case.options() | {"num_batches_tracked": case.num_batches_tracked} | changed
    case.input.requires_grad_()
    return lambda: functional.batch_norm_act(*tensors, case.residual, **options)


def joint(case: BatchNormCase, **changed: Any) -> Callable[[], Tensor]:
    """With a residual that something else keeps, as a block's first convolution does: else it would be kept instead."""
    graphs = []

    def forward() -> Tensor:
        residual = case.residual.requires_grad_() * 1
        graphs.append(residual * torch.ones_like(residual, requires_grad=True))
        return batch_norm(replace(case, residual=residual), **changed)()

    return forward


# --- BatchNorm ---


@pytest.mark.each_isa
@pytest.mark.parametrize("shape", BATCH_NORM_SHAPES.values(), ids=BATCH_NORM_SHAPES)
def test_batch_norm_of_every_shape(shape, device, path):
    for p in (0.0, 0.3):
        check_again(batch_norm(make_case(shape, act="silu", device=device), p=p, seed=None))


@pytest.mark.each_isa
@each_activation
@each_dtype
def test_batch_norm_with_every_activation(act, act_kwargs, dtype, device):
    for shape in ((3, 5, 7, 11), (4, 16, 8, 8)):
        check_again(batch_norm(make_case(shape, dtype, act=act, act_kwargs=act_kwargs, device=device)))


@pytest.mark.each_isa
@each_layout
@each_dtype
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_in_every_layout(layout, dtype, training, device):
    for shape in ((3, 5, 7, 11), (4, 32, 9)):
        case = make_case(shape, dtype, layout=layout, training=training, device=device)
        check_again(batch_norm(case))
        case = make_case(shape, dtype, layout=layout, training=training, device=device, residual=True)
        check_again(joint(case))


@pytest.mark.parametrize("dtype", STREAMED_SHAPES, ids=str)
@pytest.mark.parametrize("layout", [Tensor.contiguous, channels_last])
def test_batch_norm_of_results_that_bypass_the_caches(dtype, layout, device):
    check_again(batch_norm(make_case(STREAMED_SHAPES[dtype], dtype, layout=layout, margin=0, device=device)))


@each_dtype
@pytest.mark.parametrize("act", ["relu", "silu", "identity"])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_batch_norm_with_a_residual(act, p, dtype, device):
    check_again(joint(make_case((3, 5, 7, 11), dtype, act=act, residual=True, device=device), p=p))


def test_batch_norm_without_parameters_and_statistics(device):
    case = make_case((3, 5, 7, 11), affine=False, device=device)
    check_again(lambda: functional.batch_norm_act(case.input.requires_grad_(), None, None, training=True, act="gelu"))


def test_hard_statistics(device):
    """What is recorded is the reciprocal of the deviation, so that nothing is rounded twice."""
    x = torch.randn(8, 6, 5, 5, device=device)
    x = x * torch.tensor([1e-30, 1e-12, 1.0, 1e12, 1e19, 0.0], device=device)[:, None, None] + 3
    x.requires_grad_()
    check_again(lambda: functional.batch_norm_act(x, None, None, training=True, act="tanh"))


# --- Activations and dropout ---


@pytest.mark.each_isa
@each_activation
@each_dtype
def test_activation(act, act_kwargs, dtype, device):
    """Those whose backward needs their input; others keep their output, which is then theirs to keep."""
    x = torch.randn(5, 67, device=device).to(dtype).requires_grad_()
    if _C.activation_facts(act, list(dict(_C.activations()[_place(act)][1], **act_kwargs).values()))["keeps_result"]:
        with recompute():
            y = functional.activation(x, act, **act_kwargs)
            assert _C.describe_saved(_C.save_tensor(y))[0] is False
    else:
        check_again(lambda: functional.activation(x, act, **act_kwargs))


def _place(act: str) -> int:
    return [name for name, _ in _C.activations()].index(act)


@pytest.mark.each_isa
@each_layout
@each_dtype
def test_act_dropout(layout, dtype, device):
    x = layout(torch.randn(4, 6, 5, 8, device=device)).to(dtype).requires_grad_()
    for bias in (None, torch.randn(8, device=device).to(dtype)):
        for p in (0.0, 0.4):
            check_again(lambda p=p, bias=bias: functional.act_dropout(x, bias, act="gelu", p=p))


def behind(x: Tensor, layer: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
    """A layer that keeps nothing of its input, behind one whose output is recomputed."""
    return lambda: layer(functional.batch_norm_act(x, None, None, training=True, act="silu"))


@each_layout
@each_dtype
def test_dropout_behind_a_fused_layer(layout, dtype, device):
    x = layout(torch.randn(4, 6, 5, 8, device=device)).to(dtype).requires_grad_()
    for layer in (
        lambda y: functional.dropout(y, 0.4),
        lambda y: functional.dropout2d(y, 0.4),
        lambda y: functional.alpha_dropout(y, 0.4),
        lambda y: functional.feature_alpha_dropout(y, 0.4),
        lambda y: functional.drop_path(y, 0.4),
        lambda y: functional.act_dropout(y, act="relu", p=0.4),
        lambda y: functional.act_dropout(y, act="identity", p=0.4),
        lambda y: functional.relu(y),
    ):
        check_again(behind(x, layer))


def test_dropout_of_what_nobody_keeps_is_kept(device):
    """Its input would have to be kept instead, which gains nothing."""
    x = torch.randn(4, 6, device=device).requires_grad_() * 1
    with recompute():
        assert not _C.describe_saved(_C.save_tensor(functional.dropout(x, 0.5)))[0]


# --- Concatenation ---


@each_layout
@each_dtype
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_cat(layout, dtype, dim, device):
    def tensors() -> list[Tensor]:
        parts = [layout(torch.randn(4, 3, 5, 6, device=device).to(dtype)) for _ in range(3)]
        return [part.requires_grad_(i != 1) for i, part in enumerate(parts)]

    parts = tensors()
    check_again(lambda: functional.cat([part * 1 for part in parts], dim))
    with recompute():
        y = functional.cat(parts, dim)
    grad = torch.randn_like(y)
    ours = torch.autograd.grad(y, [parts[0], parts[2]], grad)
    stock = torch.autograd.grad(torch.cat(parts, dim), [parts[0], parts[2]], grad)
    assert all(torch.equal(a, b) and a.stride() == b.stride() for a, b in zip(ours, stock, strict=True))
    assert torch.equal(y, torch.cat(parts, dim)) and y.stride() == torch.cat(parts, dim).stride()


def test_cat_is_stocks_for_everything_else():
    x = torch.randn(2, 3, requires_grad=True)
    with recompute():
        for parts, dim in (
            ([x, torch.randn(2, 3, dtype=torch.float64)], 0),
            ([x, torch.empty(0)], 0),
            ((x, x), 1),
            ([x], 0),
        ):
            assert torch.equal(functional.cat(parts, dim), torch.cat(parts, dim))
        for wrong in (([], 0), ([x, torch.randn(3, 3)], 1), ([x], 2), ([x, 1], 0), (x.tolist(), 0)):
            with pytest.raises((RuntimeError, IndexError, TypeError, ValueError)) as stocks:
                torch.cat(*wrong)
            with pytest.raises(stocks.type):
                functional.cat(*wrong)
    assert type(functional.cat([x, x]).grad_fn).__name__ == "CatBackward0"


def test_cat_of_cats_gradgradcheck(device):
    a, b = (torch.randn(2, 3, dtype=torch.float64, device=device).requires_grad_() for _ in range(2))

    def f(a: Tensor, b: Tensor) -> Tensor:
        with recompute():
            c = functional.cat([functional.cat([a, b], 1), a.tanh()], 1)
            return functional.silu(c) * c

    assert torch.autograd.gradcheck(f, (a, b)) and torch.autograd.gradgradcheck(f, (a, b))


def _statistics() -> tuple[Tensor, Tensor]:
    return torch.randn(4, dtype=torch.float64), torch.rand(4, dtype=torch.float64) + 0.5


OPCHECKS: dict[str, list[Callable[[], tuple[Any, ...]]]] = {
    "batch_norm_act_output": [
        lambda: (torch.randn(3, 4, 5), None, torch.randn(4), None, *_statistics(), None, "silu", [], 0.0),
        lambda: (
            *(channels_last(torch.randn(3, 4, 5, 6)), torch.randn(4), None, torch.randn(3, 4, 5, 6)),
            *(*_statistics(), torch.tensor([5, 0]), "relu", [], 0.4),
        ),
        lambda: (torch.randn(0, 4, 5), None, None, None, *_statistics(), None, "elu", [0.5], 0.0),
    ],
    "act_dropout_output": [
        lambda: (torch.randn(3, 5), torch.randn(5), None, torch.tensor([5, 0]), "gelu", [], 0.4),
        lambda: (torch.randn(3, 5), None, torch.randn(3, 5), torch.empty(0, dtype=torch.long), "elu", [0.5], 0.0),
    ],
    "dropout_output": [lambda: (torch.randn(3, 5), torch.tensor([5, 0]), 0.4, "alpha")],
    "feature_dropout_output": [
        lambda: (torch.randn(3, 5, 7), None, torch.tensor([5, 0]), 2, 0.5, "inverted"),
        lambda: (
            channels_last(torch.randn(2, 3, 4, 5)),
            torch.randn(2, 3, 4, 5),
            torch.tensor([5, 0]),
            1,
            0.3,
            "alpha",
        ),
    ],
}
"""For `test_opcheck.py`."""


BAD_INPUT = {
    "input": lambda: torch.ops.fusedtricks.batch_norm_act_output(
        torch.ones(2, 4, dtype=torch.int64), None, None, None, *_statistics(), None, "relu", [], 0.0
    ),
    "weight": lambda: torch.ops.fusedtricks.batch_norm_act_output(
        torch.randn(2, 4), torch.ones(3), None, None, *_statistics(), None, "relu", [], 0.0
    ),
    "residual": lambda: torch.ops.fusedtricks.batch_norm_act_output(
        torch.randn(2, 4), None, None, torch.randn(3, 4), *_statistics(), None, "relu", [], 0.0
    ),
    "save_rstd": lambda: torch.ops.fusedtricks.batch_norm_act_output(
        torch.randn(2, 4), None, None, None, _statistics()[0], torch.ones(4), None, "relu", [], 0.0
    ),
    "rng_state": lambda: torch.ops.fusedtricks.dropout_output(torch.randn(2), torch.ones(2), 0.5, "inverted"),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_operators_name_a_wrong_argument(name):
    with pytest.raises(RuntimeError, match=name):
        BAD_INPUT[name]()
