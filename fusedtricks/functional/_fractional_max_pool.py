"""Fractional max-pooling, with an activation applied to the maxima."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import _C, eager
from ._arguments import activation_arguments, as_number, check_tensors, signed_seed
from ._route import Route, is_dynamo_compiling, ops, otherwise


def check_fractional_max_pool(
    op: str,
    kernel_size: Any,
    output_size: Any,
    output_ratio: Any,
    act: str,
    act_kwargs: Mapping[str, float] | None,
    rank: int,
) -> tuple[tuple[int, ...], tuple[int, ...] | None, tuple[float, ...] | None, list[float]]:
    """Checks the arguments; returns the sizes (one number per pooled dimension) and the activation's parameters.

    One of `output_size` and `output_ratio` may be None and is then returned as None.
    """
    if output_size is None and output_ratio is None:
        raise ValueError(f"{op} requires specifying either an output_size or an output_ratio")
    kernel = _integers(op, "kernel_size", kernel_size, rank)
    if any(length <= 0 for length in kernel):
        raise ValueError(f"kernel_size must be greater than 0, but got {kernel_size}")
    size = None if output_size is None else _integers(op, "output_size", output_size, rank)
    ratio = None if size is not None else _ratios(op, output_ratio, rank)
    arguments = activation_arguments(act, act_kwargs)
    if not torch.compiler.is_compiling():  # it could not trace this; the operator checks too
        _C.check_monotone(act, arguments)
    return kernel, size, ratio, arguments


def _integers(op: str, name: str, value: Any, rank: int) -> tuple[int, ...]:
    values = value if isinstance(value, Sequence) else (value,) * rank
    if isinstance(value, (str, bytes)) or not all(_is_integer(v) for v in values):
        raise TypeError(f"{op}(): argument {name!r} must be an int or a tuple of {rank} ints, not {value!r}")
    if len(values) != rank:
        raise RuntimeError(f"{op}: {name} must either be a single int or a tuple of {rank} ints, but got {value}")
    return tuple(v if isinstance(v, torch.SymInt) else operator.index(v) for v in values)  # type: ignore[misc]


def _is_integer(value: Any) -> bool:
    if type(value) is int or isinstance(value, torch.SymInt):
        return True
    return hasattr(value, "__index__") and not isinstance(value, bool)


def _ratios(op: str, value: Any, rank: int) -> tuple[float, ...]:
    ratios = tuple(value) if isinstance(value, (tuple, list)) else (value,) * rank
    ratios = tuple(as_number(op, "output_ratio", ratio) for ratio in ratios)
    if len(ratios) != rank:
        raise ValueError(f"{op} requires output_ratio to be a single number or a tuple of {rank}, but got {value}")
    if not all(0 < ratio < 1 for ratio in ratios):
        raise ValueError(f"output_ratio must be between 0 and 1 (got {value})")
    return ratios


def fractional_max_pool2d(
    input: Tensor,
    kernel_size: int | Sequence[int],
    output_size: int | Sequence[int] | None = None,
    output_ratio: float | Sequence[float] | None = None,
    return_indices: bool = False,
    _random_samples: Tensor | None = None,
    *,
    act: str = "identity",
    act_kwargs: Mapping[str, float] | None = None,
    seed: int | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Equivalent to `act(F.fractional_max_pool2d(input, kernel_size, output_size, …))`.

    Graham, "Fractional max-pooling", 2014 (arXiv:1412.6071): maxima of overlapping windows of `kernel_size`. Along a
    dimension, window i begins at ⌊(i + u) α⌋ - ⌊u α⌋ with α = (input - kernel) / (output - 1) and one random number u
    per plane and dimension; the last window ends where the input ends.

    The activation never decreases, so pooling first and activating the smaller tensor gives the same values as
    activating first. Kept for backward: one byte per element of the result (two for windows of more than 256 positions,
    four for more than 65536) and, with an activation, the result, which the next layer keeps anyway. Backward
    recomputes the windows and sums gradients in a fixed order.

    The random numbers follow from the seed. They use the Philox4x32-10 stream of dropout (word i is number i % 4 of
    block i // 4): number k of plane (n, c) is word (n C + c) 2 + k over 2^32. Number 0 is for the width and 1 for the
    height, as in stock's `_random_samples`. Windows derived from a seed are computed in float64, so they are the same
    for every dtype, memory format, number of threads and device.

    Args:
        input: (N, C, H, W) or (C, H, W); float32, float64, bfloat16 or float16. Contiguous and channels_last memory are
            used as they are, and kept; other strides cost one copy.
        kernel_size: of a window, (kH, kW) or one number for both.
        output_size: (oH, oW) or one number for both, from 1 to input - kernel + 1. Overrides `output_ratio`.
        output_ratio: `output_size` as a fraction of the input size, between 0 and 1: two numbers or one for both.
        return_indices: also return the positions of the maxima, for `F.max_unpool2d`.
        _random_samples: (N, C, 2), in `input`'s dtype, in [0, 1): the random numbers. Windows, values and indices are
            then the same as stock's.
        act: one of `ACTIVATIONS` that never decreases: identity, relu, relu6, leaky_relu with `negative_slope` >= 0,
            elu with `alpha` >= 0, selu, sigmoid, tanh, softplus with `threshold` >= 20.
        act_kwargs: parameters of the activation, for example `{"negative_slope": 0.2}` for `"leaky_relu"`.
        seed: 64-bit seed of the windows. None draws one from torch's generator (see `torch.manual_seed`).

    Returns:
        The maxima, (N, C, oH, oW) or (C, oH, oW), in `input`'s dtype and memory format; with `return_indices` also the
        indices, int64, of the same shape. The first of equal maxima counts; if a window has NaNs, the last NaN.

    Raises:
        ValueError: neither `output_size` nor `output_ratio` is given; `output_ratio` is outside (0, 1) or has the wrong
            number of values; `kernel_size` not positive; `act` unknown or not monotone; `seed` does not fit 64 bits.
        TypeError: an argument has the wrong type; `act_kwargs` that the activation does not take.
        RuntimeError: `output_size` is below 1 or the windows do not fit; `input` has another rank or no channels; the
            shape, dtype or device of `_random_samples` does not match `input`; a size has the wrong number of values.
    """
    arguments = (input, kernel_size, output_size, output_ratio, return_indices, _random_samples, act, act_kwargs, seed)
    return otherwise(_POOL2D, *arguments)


def fractional_max_pool3d(
    input: Tensor,
    kernel_size: int | Sequence[int],
    output_size: int | Sequence[int] | None = None,
    output_ratio: float | Sequence[float] | None = None,
    return_indices: bool = False,
    _random_samples: Tensor | None = None,
    *,
    act: str = "identity",
    act_kwargs: Mapping[str, float] | None = None,
    seed: int | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Equivalent to `act(F.fractional_max_pool3d(input, kernel_size, output_size, …))`.

    `fractional_max_pool2d` in three dimensions: `input` is (N, C, T, H, W) or (C, T, H, W), contiguous or
    channels_last_3d; sizes are (T, H, W) or one number for all; `_random_samples` is (N, C, 3). Number k of plane
    (n, c) is word (n C + c) 3 + k; numbers 0, 1 and 2 are for T, H and W, as in stock. As in stock, output sizes go up
    to input - kernel only.
    """
    arguments = (input, kernel_size, output_size, output_ratio, return_indices, _random_samples, act, act_kwargs, seed)
    return otherwise(_POOL3D, *arguments)


def _pool(
    op: str,
    rank: int,
    pool_batch: Callable[..., tuple[Tensor, Any]],
    *,
    input: Tensor,
    kernel_size: Any,
    output_size: Any,
    output_ratio: Any,
    return_indices: bool,
    _random_samples: Tensor | None,
    act: str,
    act_kwargs: Mapping[str, float] | None,
    seed: int | None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Expands the sizes, adds a batch dimension if there is none, and pools with `pool_batch`."""
    sizes = (kernel_size, output_size, output_ratio)
    kernel, size, ratio, _ = check_fractional_max_pool(op, *sizes, act, act_kwargs, rank)
    batched = input.dim() == rank + 2
    if not batched and input.dim() != rank + 1:
        raise RuntimeError(f"{op}: expected {rank + 1}D or {rank + 2}D input, but got shape {tuple(input.shape)}")
    if size is None:
        assert ratio is not None
        size = tuple(int(length * r) for length, r in zip(input.shape[-rank:], ratio, strict=True))
    batch = input if batched else input.unsqueeze(0)
    output, indices = pool_batch(batch, kernel, size, _random_samples, seed, act, act_kwargs, bool(return_indices))
    if not batched:
        output = output.squeeze(0)
    if not return_indices:
        return output
    return output, indices if batched else indices.squeeze(0)


def _pool_by_operator(
    input: Tensor,
    kernel: tuple[int, ...],
    size: tuple[int, ...],
    samples: Tensor | None,
    seed: int | None,
    act: str,
    act_kwargs: Mapping[str, float] | None,
    return_indices: bool,
) -> tuple[Tensor, Any]:
    y = None
    if not is_dynamo_compiling():
        y = _C.fractional_max_pool(input, kernel, size, samples, seed, act, act_kwargs, return_indices)
    if y is not None:
        return y if return_indices else (y, None)
    parameters = activation_arguments(act, act_kwargs)
    pooled = ops.fractional_max_pool(input, kernel, size, samples, signed_seed(seed), act, parameters)
    output, argmax, rng_state = pooled
    if not return_indices:
        return output, None
    return output, ops.fractional_max_pool_indices(argmax, samples, rng_state, input.shape[2:], kernel)


def _pool_by_composition(
    input: Tensor,
    kernel: tuple[int, ...],
    size: tuple[int, ...],
    samples: Tensor | None,
    seed: int | None,
    act: str,
    act_kwargs: Mapping[str, float] | None,
    return_indices: bool,
) -> tuple[Tensor, Any]:
    return eager.fractional_max_pool(input, kernel, size, samples=samples, seed=seed, act=act, act_kwargs=act_kwargs)


def _route(function: Callable[..., Any], rank: int) -> Route:
    op = function.__name__

    def check(
        *,
        input: Any,
        kernel_size: Any,
        output_size: Any,
        output_ratio: Any,
        _random_samples: Any,
        act: Any,
        act_kwargs: Any,
        seed: Any,
        **others: Any,
    ) -> None:
        check_fractional_max_pool(op, kernel_size, output_size, output_ratio, act, act_kwargs, rank)
        check_tensors(op, input=input, _random_samples=_random_samples)
        signed_seed(seed)

    return Route(
        function,
        ("input", "_random_samples"),
        check=check,
        operator=partial(_pool, op, rank, _pool_by_operator),
        composition=partial(_pool, op, rank, _pool_by_composition),
        is_exported=lambda **arguments: True,
    )


_POOL2D, _POOL3D = _route(fractional_max_pool2d, 2), _route(fractional_max_pool3d, 3)
