"""Quick checks that each backend computes the right values, for a new installation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import NamedTuple, cast

import torch
from torch import Tensor

from fusedtricks import _C, eager, functional

_TOLERANCE = 1e-4
_ELEMENTS = 1003  # whole vectors for every instruction set, plus a remainder
_PHILOX_SEED, _PHILOX_OFFSET, _PHILOX_COUNTER = 0x299F31D0A4093822, 0x0370734413198A2E, 0x85A308D3243F6A88
_PHILOX_ANSWER = (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)  # Random123's known answer for pi's digits


class Result(NamedTuple):
    """The result of one check of one backend."""

    backend: str
    check: str
    passed: bool
    verdict: str


def _random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _with_gradients(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """A function's output and the gradients of a weighted sum of it, as float64 tensors on the CPU."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    output = function(*leaves)
    cotangent = _random(*output.shape, seed=99).to(output)
    gradients = torch.autograd.grad(output, leaves, cotangent)
    return [tensor.detach().double().cpu() for tensor in (output, *gradients)]


def _error(fused: Callable[..., Tensor], stock: Callable[..., Tensor], inputs: list[Tensor], device: str) -> float:
    """The largest absolute difference between a fused function on `device` and stock in float64 on the CPU."""
    found = _with_gradients(fused, [tensor.to(device) for tensor in inputs])
    expected = _with_gradients(stock, [tensor.double() for tensor in inputs])
    return max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))


def _batch_norm_act(device: str, **options: float) -> float:
    shape = (4, 3, 7, 5)
    inputs = [_random(*shape, seed=1), _random(3, seed=2), _random(3, seed=3), _random(*shape, seed=4)]

    def call(module: ModuleType, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        return module.batch_norm_act(x, None, None, weight, bias, residual, act="silu", training=True, **options)

    return _error(lambda *a: call(functional, *a), lambda *a: call(eager, *a), inputs, device)


def _batch_norm_act_dropout(device: str) -> float:
    return _batch_norm_act(device, p=0.5, seed=20)


def _activation(device: str) -> float:
    x = [3 * _random(_ELEMENTS, seed=5)]

    def error(act: str) -> float:
        return _error(lambda t: functional.activation(t, act), lambda t: eager.activation(t, act), x, device)

    return max(error(act) for act in functional.ACTIVATIONS)


def _dropout(device: str) -> float:
    if tuple(_C.philox(_PHILOX_SEED, _PHILOX_OFFSET, _PHILOX_COUNTER)) != _PHILOX_ANSWER:
        raise ArithmeticError("Philox4x32-10 does not give its published known answer")
    p, seed = 0.5, 20
    ones = torch.ones(_ELEMENTS, device=device)
    key, offset = torch.ops.fusedtricks.dropout(ones, p, "inverted", seed)[1].tolist()
    words = [word for block in range(-(-_ELEMENTS // 4)) for word in _C.philox(key, offset, block)]
    mask = torch.tensor(words[:_ELEMENTS]) >= p * 2**32
    return _error(lambda x: functional.dropout(x, p, seed=seed), lambda x: x * mask / (1 - p), [ones.cpu()], device)


def _act_dropout(device: str) -> float:
    inputs = [_random(20, 37, seed=6), _random(37, seed=7), _random(20, 37, seed=8)]

    def call(module: ModuleType, *tensors: Tensor) -> Tensor:
        return module.act_dropout(*tensors, act="silu", p=0.5, seed=20)

    return _error(lambda *a: call(functional, *a), lambda *a: call(eager, *a), inputs, device)


def _drop_path(device: str) -> float:
    inputs = [_random(9, 7, 5, seed=9), _random(9, 7, 5, seed=10)]
    return _error(
        lambda x, residual: functional.drop_path(x, 0.5, residual, seed=20),
        lambda x, residual: eager.feature_dropout(x, residual, 1, 0.5, seed=20),
        inputs,
        device,
    )


def _max_pool(device: str) -> float:
    inputs = [_random(2, 3, 9, 11, seed=11), _random(3, seed=12), _random(3, seed=13)]
    stem = _error(
        lambda *a: functional.batch_norm_act_max_pool2d(a[0], None, None, *a[1:], kernel_size=3, training=True),
        lambda *a: torch.nn.functional.max_pool2d(eager.batch_norm_act(a[0], None, None, *a[1:], training=True), 3),
        inputs,
        device,
    )
    fractional = _error(
        lambda x: cast("Tensor", functional.fractional_max_pool2d(x, 2, (4, 5), act="tanh", seed=20)),
        lambda x: eager.fractional_max_pool(x, (2, 2), (4, 5), act="tanh", seed=20)[0],
        inputs[:1],
        device,
    )
    return max(stem, fractional)


def _samples(device: str) -> float:
    index = torch.tensor([4, 1, 2])
    return _error(
        lambda x, rows: functional.add_samples(x, rows, index.to(device), 1.5),
        lambda x, rows: x.index_add(0, index, rows, alpha=1.5),
        [_random(6, 5, 3, seed=14), _random(3, 5, 3, seed=15)],
        device,
    )


CHECKS = {
    "batch_norm_act": _batch_norm_act,
    "batch_norm_drop": _batch_norm_act_dropout,
    "activation": _activation,
    "dropout": _dropout,
    "act_dropout": _act_dropout,
    "drop_path": _drop_path,
    "max_pool": _max_pool,
    "samples": _samples,
}


def _run_check(backend: str, check: str) -> Result:
    try:
        error = CHECKS[check](backend)
    except Exception as problem:
        return Result(backend, check, False, f"FAILED: {type(problem).__name__}: {problem}")
    passed = error <= _TOLERANCE  # a NaN does not pass
    return Result(backend, check, passed, f"{'ok' if passed else 'FAILED'}, largest error {error:.1e}")


def run(built: Sequence[str]) -> Iterator[Result]:
    """Checks the CPU kernels in use, and the CUDA kernels if they were built and there is a device."""
    for check in CHECKS:
        yield _run_check("cpu", check)
    if "cuda" not in built:
        return
    for check in CHECKS:
        if torch.cuda.is_available():
            yield _run_check("cuda", check)
        else:
            yield Result("cuda", check, True, "not run: no CUDA device")
