"""Fractional max-pooling, with an activation of the maxima."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import _C, eager
from ._arguments import activation_arguments, check_types, signed_seed
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
    """The sizes, one number for each pooled dimension, and the activation's parameters; raises where one is wrong.

    Of `output_size` and `output_ratio`, one may be None, and then it is answered as None.
    """
    if output_size is None and output_ratio is None:
        raise ValueError(f"{op} requires specifying either an output_size or an output_ratio")
    kernel = _integers(op, "kernel_size", kernel_size, rank)
    if any(length <= 0 for length in kernel):
        raise ValueError(f"kernel_size must be greater than 0, but got {kernel_size}")
    size = None if output_size is None else _integers(op, "output_size", output_size, rank)
    ratio = None if output_ratio is None else _ratios(op, output_ratio, rank)
    arguments = activation_arguments(act, act_kwargs)
    if not torch.compiler.is_compiling():  # which cannot trace it; the operator checks too
        _C.check_monotone(act, arguments)
    return kernel, size, ratio, arguments


def _integers(op: str, name: str, value: Any, rank: int) -> tuple[int, ...]:
    values = value if isinstance(value, Sequence) else (value,) * rank
    if isinstance(value, str) or not all(isinstance(v, torch.SymInt) or hasattr(v, "__index__") for v in values):
        raise TypeError(f"{op}(): argument {name!r} must be an int or a tuple of {rank} ints, not {value!r}")
    if len(values) != rank:
        raise RuntimeError(f"{op}: {name} must either be a single int or a tuple of {rank} ints, but got {value}")
    return tuple(v if isinstance(v, torch.SymInt) else operator.index(v) for v in values)  # type: ignore[misc]


def _ratios(op: str, value: Any, rank: int) -> tuple[float, ...]:
    ratios = tuple(value) if isinstance(value, (tuple, list)) else (value,) * rank
    if not all(isinstance(ratio, (int, float)) for ratio in ratios):
        raise TypeError(f"{op}(): argument 'output_ratio' must be a number or a tuple of {rank} numbers, not {value!r}")
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
    dimension, window i begins at ⌊(i + u) α⌋ - ⌊u α⌋ with α = (input - kernel) / (output - 1) and a random number u of
    each plane and dimension; the last window ends with the input.

    The activation never decreases, so pooling first and activating the smaller tensor gives what activating first
    would. Kept for backward are one byte an element of the result (two for windows of over 256 places, four of over
    65536) and, where there is an activation, the result, which the next layer keeps anyway. The windows are computed
    once more. The gradient is added up in a fixed order.

    The random numbers follow from a seed: with the Philox4x32-10 stream of dropout (word i is number i % 4 of block
    i // 4), number k of plane (n, c) is word (n C + c) 2 + k over 2^32. Number 0 is that of the width and 1 that of the
    height, as in stock's `_random_samples`. Windows that follow from a seed are computed in float64: they are the same
    for every dtype, memory format, number of threads and device.

    Args:
        input: (N, C, H, W) or (C, H, W), float32, float64, bfloat16 or float16. Contiguous and channels_last memory are
            both taken as they are, and kept; other strides cost one copy.
        kernel_size: of a window, (kH, kW) or one number for both.
        output_size: (oH, oW) or one number for both, from 1 to input - kernel + 1. Goes before `output_ratio`.
        output_ratio: `output_size` as a share of the input's, between 0 and 1: two numbers or one for both.
        return_indices: also return the positions of the maxima, for `F.max_unpool2d`.
        _random_samples: (N, C, 2), of `input`'s dtype, in [0, 1): the random numbers. Then windows, values and indices
            are stock's.
        act: one of `ACTIVATIONS` that never decreases: identity, relu, relu6, leaky_relu with `negative_slope` >= 0,
            elu with `alpha` >= 0, selu, sigmoid, tanh, softplus with `threshold` >= 20.
        act_kwargs: its parameters, for example `{"negative_slope": 0.2}` for `"leaky_relu"`.
        seed: 64-bit seed of the windows. None draws one from torch's generator, which `torch.manual_seed` governs.

    Returns:
        The maxima, (N, C, oH, oW) or (C, oH, oW), in `input`'s dtype and memory format; with `return_indices` also the
        indices, int64, of that shape. Of equal maxima the first counts; where there are NaN, the last of them.

    Raises:
        ValueError: neither `output_size` nor `output_ratio`; an `output_ratio` outside (0, 1), or of another number of
            lengths; `kernel_size` not positive; `act` unknown or not monotone; `seed` that does not fit 64 bits.
        TypeError: an argument of a wrong type; `act_kwargs` that the activation does not take.
        RuntimeError: an `output_size` for which the windows do not fit, or below 1; `input` of another rank or without
            channels; `_random_samples` whose shape, dtype or device does not fit `input`; sizes of another number of
            lengths.
        NotImplementedError: `input` of another dtype, or on a device without a backend.
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
    (n, c) is word (n C + c) 3 + k, and number 0 that of T, 1 of H, 2 of W, as in stock. Output sizes go, as stock's, up
    to input - kernel.
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
    """Sizes for each dimension, and a batch dimension, around what pools a batch."""
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
        check_types(op, {"input": input, "_random_samples": _random_samples}, {})
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
