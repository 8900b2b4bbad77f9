"""`torch.library.opcheck` for every op: schema, Meta kernel, autograd registration, AOT dispatch."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import channels_last, sliced
from torch import Tensor

import fusedtricks  # noqa: F401  (registers the ops)

ops = torch.ops.fusedtricks


def batch_norm_arguments(
    layout: Callable[[Tensor], Tensor] = Tensor.contiguous,
    dtype: torch.dtype = torch.float32,
    act: str = "relu",
    act_args: tuple[float, ...] = (),
    training: bool = True,
    affine: bool = True,
    residual: bool = False,
    momentum: float | None = 0.1,
) -> tuple[Any, ...]:
    """Arguments in schema order; the differentiable ones require grad."""
    x, r = (layout(torch.randn(3, 4, 5, 6).to(dtype)).requires_grad_() for _ in range(2))
    weight, bias = (torch.rand(4).requires_grad_() if affine else None for _ in range(2))
    statistics = (torch.zeros(4), torch.ones(4), torch.tensor(2))
    return (
        *((x, *statistics, weight, bias)),
        r if residual else None,
        act,
        list(act_args),
        training,
        momentum,
        1e-5,
    )


def batch_norm_backward_arguments(keeps_output: bool, **options: Any) -> tuple[Any, ...]:
    arguments = batch_norm_arguments(**options)
    x, _, _, _, weight, bias, residual, act, act_args, training, _, eps = arguments
    with torch.no_grad():
        output, mean, rstd = ops.batch_norm_act(*arguments)
    dy = torch.randn_like(output).requires_grad_()
    kept = (None, output) if keeps_output else (residual, None)
    mask = [True, weight is not None, bias is not None, residual is not None]
    return (dy, x, weight, bias, *kept, mean, rstd, act, act_args, training, eps, mask)


STEM = ([3, 3], [2, 2], [1, 1], [1, 1], False)


def batch_norm_pool_arguments(windows: tuple[Any, ...] = STEM, **options: Any) -> tuple[Any, ...]:
    *tensors, _, act, act_args, training, momentum, eps = batch_norm_arguments(**options)
    return (*tensors, act, act_args, *windows, training, momentum, eps)


def batch_norm_pool_backward_arguments(windows: tuple[Any, ...] = STEM, **options: Any) -> tuple[Any, ...]:
    arguments = batch_norm_pool_arguments(windows, **options)
    x, _, _, _, weight, bias, act, act_args = arguments[:8]
    with torch.no_grad():
        output, argmax, mean, rstd = ops.batch_norm_act_max_pool2d(*arguments)
    dy, mask = torch.randn_like(output).requires_grad_(), [True, weight is not None, bias is not None]
    return (dy, x, weight, bias, argmax, mean, rstd, act, act_args, *windows, arguments[-3], arguments[-1], mask)


def batch_norm_dropout_arguments(**options: Any) -> tuple[Any, ...]:
    return (*batch_norm_arguments(**options), 0.4, 5)


def batch_norm_dropout_backward_arguments(keeps_output: bool, **options: Any) -> tuple[Any, ...]:
    arguments = batch_norm_backward_arguments(keeps_output, **options)
    *_, eps, mask = arguments
    return (*arguments[:8], torch.tensor([5, 0]), *arguments[8:-2], eps, 0.4, mask)


def leaf(*shape: int) -> Tensor:
    return torch.randn(*shape).requires_grad_()


def pool_arguments(
    *kernel: int,
    layout: Callable[[Tensor], Tensor] = Tensor.contiguous,
    samples: bool = False,
    act: str = "identity",
) -> tuple[Any, ...]:
    x = layout(torch.randn(2, 3, *[7] * len(kernel))).requires_grad_()
    return x, list(kernel), [4] * len(kernel), torch.rand(2, 3, len(kernel)) if samples else None, 5, act, []


def pool_backward_arguments(*kernel: int, **options: Any) -> tuple[Any, ...]:
    arguments = pool_arguments(*kernel, **options)
    x, _, _, samples, _, act, act_args = arguments
    with torch.no_grad():
        output, argmax, rng_state = ops.fractional_max_pool(*arguments)
    kept = None if act == "identity" else output.requires_grad_()
    sizes = (list(x.shape[2:]), list(kernel), not x.is_contiguous())
    return (torch.randn_like(output).requires_grad_(), kept, argmax, samples, rng_state, *sizes, act, act_args)


def pool_indices_arguments(*kernel: int, **options: Any) -> tuple[Any, ...]:
    _, _, argmax, samples, rng_state, input_size, kernel_size, *_ = pool_backward_arguments(*kernel, **options)
    return argmax, samples, rng_state, input_size, kernel_size


OPCHECKS: dict[str, list[Callable[[], tuple[Any, ...]]]] = {
    "batch_norm_act": [
        lambda: batch_norm_arguments(),
        lambda: batch_norm_arguments(layout=channels_last, residual=True, momentum=None, act="silu"),
        lambda: batch_norm_arguments(training=False, affine=False, act="leaky_relu", act_args=(0.2,)),
        lambda: batch_norm_arguments(layout=sliced, dtype=torch.bfloat16),
    ],
    "batch_norm_act_backward": [
        lambda: batch_norm_backward_arguments(False, act="gelu"),
        lambda: batch_norm_backward_arguments(False, act="mish", residual=True, layout=channels_last),
        lambda: batch_norm_backward_arguments(True, act="sigmoid", residual=True, training=False),
    ],
    "batch_norm_act_max_pool2d": [
        lambda: batch_norm_pool_arguments(),
        lambda: batch_norm_pool_arguments(layout=channels_last, momentum=None, act="silu"),
        lambda: batch_norm_pool_arguments(([2, 3], [1, 2], [1, 0], [2, 1], True), training=False, affine=False),
        lambda: batch_norm_pool_arguments(layout=sliced, dtype=torch.bfloat16),
    ],
    "batch_norm_act_max_pool2d_backward": [
        lambda: batch_norm_pool_backward_arguments(act="gelu"),
        lambda: batch_norm_pool_backward_arguments(layout=channels_last, act="mish", training=False),
        lambda: batch_norm_pool_backward_arguments(([2, 3], [1, 2], [1, 0], [2, 1], True), affine=False),
    ],
    "batch_norm_act_dropout": [
        lambda: batch_norm_dropout_arguments(),
        lambda: batch_norm_dropout_arguments(layout=channels_last, residual=True, momentum=None, act="silu"),
        lambda: batch_norm_dropout_arguments(residual=True, act="identity", training=False),
    ],
    "batch_norm_act_dropout_backward": [
        lambda: batch_norm_dropout_backward_arguments(False, act="gelu"),
        lambda: batch_norm_dropout_backward_arguments(False, act="tanh", residual=True, layout=channels_last),
        lambda: batch_norm_dropout_backward_arguments(True, act="relu", residual=True),
    ],
    "activation": [lambda: (leaf(3, 5), "gelu", []), lambda: (leaf(2, 3, 4).transpose(0, 2), "elu", [0.5])],
    "activation_": [lambda: (torch.randn(3, 5), "silu", []), lambda: (leaf(3, 5) * 1, "leaky_relu", [0.2])],
    "activation_backward": [
        lambda: (leaf(3, 5), leaf(3, 5), "gelu", []),
        lambda: (leaf(4), leaf(4), "tanh", []),
    ],
    "activation_grad_grad": [lambda: (torch.randn(3, 5), torch.randn(3, 5), "softplus", [1.0, 20.0])],
    "dropout": [
        lambda: (leaf(3, 5, 7), 0.5, "inverted", 5),
        lambda: (channels_last(torch.randn(2, 3, 4, 5)).requires_grad_(), 0.3, "classic", 5),
    ],
    "dropout_": [lambda: (torch.randn(3, 5), 0.5, "inverted", 5), lambda: (leaf(3, 5) * 1, 0.5, "inverted", 5)],
    "act_dropout": [
        lambda: (leaf(3, 5), leaf(5), None, "relu", [], 0.5, 5),
        lambda: (channels_last(torch.randn(2, 3, 4, 5)).requires_grad_(), leaf(3, 1, 1), None, "gelu", [], 0.3, 5),
        lambda: (leaf(2, 3, 4), None, leaf(2, 3, 4), "elu", [0.5], 0.0, None),
    ],
    "act_dropout_backward": [
        lambda: (leaf(3, 5), None, leaf(3, 5), leaf(5), None, "relu", [], 0.5, [True, True]),
        lambda: (leaf(3, 5), leaf(3, 5), None, leaf(5), torch.tensor([5, 0]), "silu", [], 0.5, [True, True]),
        lambda: (leaf(3, 5), None, None, None, torch.tensor([5, 0]), "identity", [], 0.5, [True, False]),
    ],
    "feature_dropout": [
        lambda: (leaf(3, 5, 7), None, 2, 0.5, "inverted", 5),
        lambda: (channels_last(torch.randn(2, 3, 4, 5)).requires_grad_(), leaf(2, 3, 4, 5), 1, 0.3, "alpha", 5),
    ],
    "feature_dropout_": [
        lambda: (torch.randn(3, 5), 2, 0.5, "alpha", 5),
        lambda: (leaf(3, 5) * 1, 1, 0.5, "inverted", 5),
    ],
    "feature_dropout_backward": [lambda: (leaf(3, 5), torch.tensor([5, 0]), 1, 0.5, "inverted")],
    "dropout_backward": [lambda: (leaf(3, 5), torch.tensor([5, 0]), 0.5, "inverted")],
    "fractional_max_pool": [
        lambda: pool_arguments(2, 3, act="tanh"),
        lambda: pool_arguments(3, 2, layout=channels_last, samples=True),
        lambda: pool_arguments(2, 2, 2, layout=sliced),
    ],
    "fractional_max_pool_backward": [
        lambda: pool_backward_arguments(2, 3, act="tanh"),
        lambda: pool_backward_arguments(2, 2, 2, layout=channels_last, samples=True),
    ],
    "fractional_max_pool_indices": [
        lambda: pool_indices_arguments(2, 3),
        lambda: pool_indices_arguments(2, 2, 2, layout=channels_last, samples=True),
    ],
    "drop_connect_linear": [
        lambda: (leaf(3, 5), leaf(4, 5), leaf(4), 0.5, 5),
        lambda: (leaf(2, 3, 5), leaf(4, 5), None, 0.3, 5),
    ],
    "dropped_linear": [lambda: (torch.randn(3, 5), torch.randn(4, 5), torch.randn(4), 0.5, 5)],
    "dropped_linear_backward": [
        lambda: (torch.randn(3, 4), torch.randn(3, 5), torch.randn(4, 5), torch.tensor([5, 0]), 0.5)
    ],
    "drop_connect_convolution": [
        lambda: (leaf(2, 3, 7), leaf(4, 3, 2), leaf(4), [2], [1], [1], 1, 0.5, 5),
        lambda: (channels_last(torch.randn(2, 4, 5, 6)), leaf(4, 2, 3, 3), None, [1, 1], [1, 0], [1, 2], 2, 0.3, 5),
    ],
    "add_samples": [
        lambda: (leaf(4, 3, 5), leaf(2, 3, 5), torch.tensor([3, 1]), 1.5),
        lambda: (channels_last(torch.randn(4, 3, 5, 6)).requires_grad_(), leaf(1, 3, 5, 6), torch.tensor([2]), 1.0),
    ],
    "select_samples": [
        lambda: (leaf(4, 3, 5), torch.tensor([3, 1]), 1.5),
        lambda: (channels_last(torch.randn(4, 3, 5, 6)).requires_grad_(), torch.tensor([2, 0], dtype=torch.int32), 1.0),
        lambda: (sliced(channels_last(torch.randn(4, 3, 5, 6))).requires_grad_(), torch.tensor([2, 0]), 1.0),
    ],
    "place_samples": [
        lambda: (leaf(2, 3, 5), torch.tensor([3, 1]), 4, 1.5),
        lambda: (channels_last(torch.randn(2, 3, 5)).requires_grad_(), torch.tensor([2, 0]), 3, 1.0),
    ],
    "branch_samples": [lambda: (leaf(4, 3, 5), torch.tensor([3, 1]))],
}
NO_TENSORS = {"cpu_capability"}


def opchecks_of_test_modules() -> dict[str, list[Callable[[], tuple[Any, ...]]]]:
    """An op's own test module can have its cases, too, under the name `OPCHECKS`."""
    found = {}
    for path in Path(__file__).parent.glob("test_*.py"):
        if path != Path(__file__) and "\nOPCHECKS" in path.read_text():
            found |= import_module(path.stem).OPCHECKS
    return found


OPCHECKS |= opchecks_of_test_modules()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [pytest.param(name, make, id=f"{name}-{i}") for name, makes in OPCHECKS.items() for i, make in enumerate(makes)],
)
def test_opcheck(name, arguments, device):
    with device:
        inputs = arguments()
    torch.library.opcheck(getattr(ops, name).default, inputs)


def test_opcheck_covers_every_op():
    registered = {schema.name for schema in torch._C._jit_get_all_schemas()}
    ours = {name.removeprefix("fusedtricks::") for name in registered if name.startswith("fusedtricks::")}
    assert ours == OPCHECKS.keys() | NO_TENSORS
