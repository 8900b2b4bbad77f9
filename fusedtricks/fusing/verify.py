"""Runs a fused model and its stock counterpart and compares all results."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from .running.masks import stock_dropout

_TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-3}
_COARSE = 5e-2  # for 16-bit types


def verify(stock: nn.Module, fused: nn.Module, example_inputs: Any) -> None:
    """Compares two models in training and in evaluation, forward and backward, with the same seed. Both are changed.

    What is compared are results, gradients and buffers: their dtypes, and which tensors have a gradient, in the models'
    own precision, because autocast leaves float64 alone; their values in float64 if the model allows it, so that
    rounding cannot hide a difference.

    Raises:
        RuntimeError: they differ by more than rounding.
        Exception: whatever the stock model raises for these inputs.
    """
    doubles = _in_double(stock, fused, example_inputs)
    _compare_models(stock, fused, example_inputs, values=doubles is None)
    if doubles is not None:
        _compare_models(*doubles, values=True)


def _in_double(stock: nn.Module, fused: nn.Module, example_inputs: Any) -> tuple[nn.Module, nn.Module, Any] | None:
    """Copies of both models and the inputs in float64; None if the stock model does not run in it."""
    try:
        copies = copy.deepcopy(stock).double(), copy.deepcopy(fused).double(), _double(example_inputs)
        with torch.no_grad(), torch.random.fork_rng():
            _call(copy.deepcopy(copies[0]), copies[2])
    except Exception:  # if it is not about the precision, the model will raise it again
        return None
    return copies


def _double(inputs: Any) -> Any:
    return tree_map(lambda x: x.double() if _is_floating_point(x) else x, inputs)


def _is_floating_point(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _compare_models(stock: nn.Module, fused: nn.Module, example_inputs: Any, values: bool) -> None:
    leaves = _takes_leaves(stock, example_inputs)
    for training in (True, False):
        mode = "training" if training else "evaluation"
        expected = _results(stock.train(training), example_inputs, leaves)
        try:
            actual = _results(fused.train(training), example_inputs, leaves)
        except Exception as error:
            raise RuntimeError(f"the fused model differs from the stock one: in {mode}, it raises {error}") from error
        for kind, tensors in expected.items():
            where = f"{kind}, in {mode}"
            _compare_kinds(where, actual[kind], tensors)
            if values:
                _compare(where, actual[kind], tensors)


def _takes_leaves(model: nn.Module, example_inputs: Any) -> bool:
    """Whether a model takes inputs that require a gradient; some set that themselves, which a leaf does not survive."""
    try:
        _results(copy.deepcopy(model), example_inputs, leaves=True)
    except Exception:  # without them, it raises again whatever has another cause
        return False
    return True


def _results(model: nn.Module, example_inputs: Any, leaves: bool) -> dict[str, dict[str, Tensor]]:
    """Results, gradients and buffers, by name."""
    inputs = tree_map(
        lambda x: x.detach().clone().requires_grad_(leaves) if _is_floating_point(x) else x, example_inputs
    )
    with torch.random.fork_rng(), _python_seeded(), stock_dropout(), torch.enable_grad():
        torch.manual_seed(0)
        result = _call(model, inputs)
    outputs = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
    sources = {f"input {i}": x for i, x in enumerate(tree_leaves(inputs)) if _is_floating_point(x) and leaves}
    sources |= {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {
        "results": {str(i): x.detach() for i, x in enumerate(outputs)},
        "gradients": dict(_gradients([x for x in outputs if x.requires_grad], sources)),
        "buffers": {name: buffer.clone() for name, buffer in model.named_buffers()},
    }


@contextmanager
def _python_seeded() -> Iterator[None]:
    state = random.getstate()
    random.seed(0)
    try:
        yield
    finally:
        random.setstate(state)


def _call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


def _gradients(outputs: list[Tensor], leaves: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The gradients of a sum in which every element has a different weight."""
    if not outputs or not leaves:
        return
    weights = [torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view(y.shape) for y in outputs]
    gradients = torch.autograd.grad(outputs, list(leaves.values()), weights, allow_unused=True)
    yield from ((name, g) for name, g in zip(leaves, gradients, strict=True) if g is not None)


def _compare_kinds(where: str, actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Compares which tensors there are, and their shapes and dtypes."""
    for name in {**expected, **actual}:
        a, b = (
            f"{tuple(x.shape)} {x.dtype}" if x is not None else "none" for x in (actual.get(name), expected.get(name))
        )
        if a != b:
            raise RuntimeError(f"the fused model differs from the stock one: {where}, {name}: {a}, not {b}")


def _compare(kind: str, actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Tolerances are relative to the largest value of the kind, because some gradients consist only of rounding."""
    scale = max(
        (x.detach().abs().max().item() for x in expected.values() if _is_floating_point(x) and x.numel()), default=1
    )
    for name, value in expected.items():
        tolerance = _TOLERANCES.get(value.dtype, _COARSE)
        try:
            torch.testing.assert_close(actual[name], value, rtol=tolerance, atol=tolerance * scale, equal_nan=True)
        except AssertionError as error:
            raise RuntimeError(f"the fused model differs from the stock one: {kind}, {name}: {error}") from error
