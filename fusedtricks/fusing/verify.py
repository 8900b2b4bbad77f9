"""Runs a fused model and its stock counterpart and compares all results."""

from __future__ import annotations

import copy
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from .running.masks import stock_dropout

_TOLERANCES = {torch.float64: 1e-7, torch.float32: 1e-4}  # stock's Hardsigmoid takes 1/6 in float32, also for float64
_COARSE = 5e-2  # for 16-bit types
_ROUNDINGS = 4  # of parameters and inputs, to see how far the stock model's results move
_UNITS = 4  # in the last place, by which they are rounded: sums of many terms differ by as much
_TIMES = 10  # that distance is still rounding

Results = dict[str, dict[str, Tensor]]
"""Results, gradients and buffers, by name."""


def verify(stock: nn.Module, fused: nn.Module, example_inputs: Any) -> None:
    """Compares two models in training and in evaluation, forward and backward, with the same seed. Both are changed.

    What is compared are results, gradients and buffers: their dtypes, and which tensors have a gradient, in the models'
    own precision, because autocast leaves float64 alone; their values in float64 if the model allows it, so that
    rounding cannot hide a difference. Where they differ nevertheless, the stock model is compared with itself, with
    parameters and inputs rounded differently: another order of summation, such as ours, may change a result about as
    much, which in deep models with BatchNorm over few values is far more than the rounding of one layer. A gradient
    that moves by its own size is only rounding, such as that of a bias before BatchNorm: zero but for the order of a
    sum.

    Raises:
        RuntimeError: they differ by more than rounding.
        Exception: whatever the stock model raises for these inputs.
    """
    doubles = _in_double(stock, fused, example_inputs)
    _compare_models(stock, fused, example_inputs, values=doubles is None)
    if doubles is not None:
        _compare_models(*doubles, values=True)


def _in_double(stock: nn.Module, fused: nn.Module, example_inputs: Any) -> tuple[nn.Module, nn.Module, Any] | None:
    """Copies of both models and the inputs in float64; None if stock's forwards and backwards do not run in it."""
    try:
        copies = copy.deepcopy(stock).double(), copy.deepcopy(fused).double(), _double(example_inputs)
        trial = copy.deepcopy(copies[0])
        _in_both_modes(trial, copies[2], _takes_leaves(trial, copies[2]))
    except Exception:  # if it is not about the precision, the model will raise it again
        return None
    return copies


def _double(inputs: Any) -> Any:
    return tree_map(lambda x: x.double() if _is_floating_point(x) else x, inputs)


def _is_floating_point(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _compare_models(stock: nn.Module, fused: nn.Module, example_inputs: Any, values: bool) -> None:
    leaves = _takes_leaves(stock, example_inputs)
    before = copy.deepcopy(stock)
    expected = _in_both_modes(stock, example_inputs, leaves)
    try:
        actual = _in_both_modes(fused, example_inputs, leaves, expected)
    except Exception as error:
        mode = "training" if fused.training else "evaluation"
        raise RuntimeError(f"the fused model differs from the stock one: in {mode}, it raises {error}") from error
    moved = cache(partial(_moved, before, example_inputs, leaves, expected))  # seldom called
    for kind, tensors in expected.items():
        _compare_kinds(kind, actual[kind], tensors)
        if values:
            _compare(kind, actual[kind], tensors, moved)


def _in_both_modes(model: nn.Module, example_inputs: Any, leaves: bool, expected: Results | None = None) -> Results:
    """The results in training, then in evaluation: that with the buffers expected then, however far its own moved."""
    results: Results = {}
    for mode in ("training", "evaluation"):
        of_mode = _results(model.train(mode == "training"), example_inputs, leaves)
        results |= {f"{kind}, in {mode}": tensors for kind, tensors in of_mode.items()}
        if mode == "training" and expected is not None:
            _set_buffers(model, expected["buffers, in training"])
    return results


def _set_buffers(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            value = values.get(name, buffer)
            if _is_floating_point(buffer) and buffer.shape == value.shape and not torch.equal(buffer, value):
                buffer.copy_(value)


def _takes_leaves(model: nn.Module, example_inputs: Any) -> bool:
    """Whether a model takes inputs that require a gradient; some set that themselves, which a leaf does not survive."""
    try:
        _results(copy.deepcopy(model), example_inputs, leaves=True)
    except Exception:  # without them, it raises again whatever has another cause
        return False
    return True


def _moved(model: nn.Module, example_inputs: Any, leaves: bool, expected: Results) -> dict[Tensor, float]:
    """How far, at most, each tensor of the results moves if parameters and inputs are rounded differently."""
    moved: dict[Tensor, float] = defaultdict(float)
    for seed in range(_ROUNDINGS):
        another, rounded = copy.deepcopy(model), partial(_rounded, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            for parameter in another.parameters():
                parameter.copy_(rounded(parameter))
        for kind, tensors in _in_both_modes(another, tree_map(rounded, example_inputs), leaves, expected).items():
            for name in tensors.keys() & expected[kind].keys():
                tensor = expected[kind][name]
                moved[tensor] = max(moved[tensor], _distance(tensors[name], tensor))
    return moved


def _rounded(x: Any, generator: torch.Generator) -> Any:
    """Every value a bit larger or smaller, except whole numbers, which may be a mask, an index or a switch."""
    if not _is_floating_point(x):
        return x
    error = _UNITS * torch.finfo(x.dtype).eps * (2 * torch.randint(2, x.shape, generator=generator) - 1)
    return torch.where(x == x.round(), x, x * (1 + error.to(x)))


def _distance(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape or a.numel() == 0:
        return 0.0
    differences = (a.double() - b.double()).abs()
    return differences.nan_to_num(0.0, 0.0, 0.0).max().item()


def _results(model: nn.Module, example_inputs: Any, leaves: bool) -> Results:
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


def _compare(
    kind: str, actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], moved: Callable[[], Mapping[Tensor, float]]
) -> None:
    """Tolerances are relative to the largest value of each tensor, or of the kind for what is only rounding."""
    for name, value in expected.items():
        tolerance = _TOLERANCES.get(value.dtype, _COARSE)
        least = tolerance * _largest(value)
        close = partial(torch.testing.assert_close, actual[name], value, rtol=tolerance, equal_nan=True)
        try:
            close(atol=least)
        except AssertionError:
            allowed = _TIMES * moved()[value]
            if allowed >= _largest(value):
                allowed += tolerance * max(map(_largest, expected.values()))
            try:
                close(atol=least + allowed)
            except AssertionError as error:
                raise RuntimeError(f"the fused model differs from the stock one: {kind}, {name}: {error}") from error


def _largest(x: Tensor) -> float:
    return x.detach().nan_to_num(0, 0, 0).abs().max().item() if _is_floating_point(x) and x.numel() else 0.0
