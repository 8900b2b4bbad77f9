"""`torch.library.opcheck` for every op: schema, Meta kernel, autograd registration, AOT dispatch."""

from __future__ import annotations

from collections.abc import Callable
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
    """In the order of the schema, differentiable ones requiring grad."""
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


def batch_norm_dropout_arguments(**options: Any) -> tuple[Any, ...]:
    return (*batch_norm_arguments(**options), 0.4, 5)


def batch_norm_dropout_backward_arguments(keeps_output: bool, **options: Any) -> tuple[Any, ...]:
    arguments = batch_norm_backward_arguments(keeps_output, **options)
    *_, eps, mask = arguments
    return (*arguments[:8], torch.tensor([5, 0]), *arguments[8:-2], eps, 0.4, mask)


def leaf(*shape: int) -> Tensor:
    return torch.randn(*shape).requires_grad_()


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
    "activation_backward_slope": [lambda: (torch.randn(3, 5), torch.randn(3, 5), "softplus", [1.0, 20.0])],
    "dropout": [
        lambda: (leaf(3, 5, 7), 0.5, True, 5),
        lambda: (channels_last(torch.randn(2, 3, 4, 5)).requires_grad_(), 0.3, False, 5),
    ],
    "dropout_": [lambda: (torch.randn(3, 5), 0.5, True, 5), lambda: (leaf(3, 5) * 1, 0.5, True, 5)],
    "dropout_backward": [lambda: (leaf(3, 5), torch.tensor([5, 0]), 0.5, True)],
}
NO_TENSORS = {"cpu_capability"}


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
