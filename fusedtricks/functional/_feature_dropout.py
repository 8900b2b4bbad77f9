"""Dropout of whole channels and samples, alpha dropout, stochastic depth."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary, has_torch_function_variadic

from .. import _C, eager
from ._calls import check_types, needs_composition, ops, signed_seed
from ._dropout import check_dropout, drop


def _feature_dropout(
    op: str,
    input: Tensor,
    residual: Tensor | None,
    mask_dims: int,
    p: float,
    mode: str,
    seed: int | None,
    inplace: bool = False,
) -> Tensor:
    """Drops with one mask value for each index of the first `mask_dims` dimensions."""
    seed = signed_seed(seed)
    if torch.compiler.is_compiling():
        if not inplace:
            return ops.feature_dropout(input, residual, mask_dims, p, mode, seed)[0]
        ops.feature_dropout_(input, mask_dims, p, mode, seed)
        return input
    if needs_composition():
        result = eager.feature_dropout(input, residual, mask_dims, p, mode=mode, seed=seed)
        return input.copy_(result) if inplace else result
    try:
        return _C.feature_dropout(input, residual, mask_dims, p, mode, seed, inplace)
    except TypeError:
        check_types(op, {"input": input, "residual": residual}, {"p": p})
        raise


def _drop_channels(
    op: str, dims: Sequence[int], input: Tensor, p: float, training: bool, inplace: bool, seed: int | None, mode: str
) -> Tensor:
    """Drops channels of an input with that many dimensions: the least of them without a batch dimension."""
    check_dropout(p)
    check_types(op, {"input": input}, {})
    if input.dim() not in dims:
        expected = " or ".join(f"{d}D" for d in dims)
        raise RuntimeError(f"{op}: Expected {expected} input, but received a {input.dim()}D input")
    if not training or p == 0:
        return input
    mask_dims = 2 if input.dim() == dims[-1] else 1
    return _feature_dropout(op, input, None, mask_dims, p, mode, seed, inplace)


def dropout1d(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, *, seed: int | None = None
) -> Tensor:
    """Equivalent to `F.dropout1d(input, p, training, inplace)`, with another stream of random bits.

    Whole channels are dropped (Tompson et al., "Efficient object localization using convolutional networks", 2015).
    Channel c of sample n has word n C + c of the mask's stream; see `dropout`. Nothing but the seed is kept for
    backward.

    Args:
        input: (N, C, L), or (C, L); float32, float64, bfloat16 or float16.
        p: probability of dropping a channel, in [0, 1].
        training: drop; else the input is returned.
        inplace: write the result over `input`.
        seed: 64-bit seed of the mask. None draws one from torch's generator.

    Returns:
        A tensor like `input`; `input` itself if `inplace` or nothing is to be done.

    Raises:
        ValueError: `p` outside [0, 1] or NaN; `seed` that does not fit 64 bits.
        TypeError: `input` is not a tensor.
        RuntimeError: `input` of other dimensions; `inplace` on a leaf that requires grad.
        NotImplementedError: `input` of another dtype, or on a device without a backend.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(dropout1d, (input,), input, p, training, inplace, seed=seed)
    return _drop_channels("dropout1d", (2, 3), input, p, training, inplace, seed, "inverted")


def dropout2d(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, *, seed: int | None = None
) -> Tensor:
    """Equivalent to `F.dropout2d(input, p, training, inplace)`, with another stream of random bits. See `dropout1d`.

    Args:
        input: (N, C, H, W); (N, C, L) is taken as by `dropout1d`, as stock does.
        p: probability of dropping a channel, in [0, 1].
        training: drop; else the input is returned.
        inplace: write the result over `input`.
        seed: 64-bit seed of the mask. None draws one from torch's generator.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(dropout2d, (input,), input, p, training, inplace, seed=seed)
    if isinstance(input, Tensor) and input.dim() == 3:
        return _drop_channels("dropout2d", (3,), input, p, training, inplace, seed, "inverted")
    return _drop_channels("dropout2d", (4,), input, p, training, inplace, seed, "inverted")


def dropout3d(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, *, seed: int | None = None
) -> Tensor:
    """Equivalent to `F.dropout3d(input, p, training, inplace)`, with another stream of random bits. See `dropout1d`.

    Args:
        input: (N, C, D, H, W), or (C, D, H, W).
        p: probability of dropping a channel, in [0, 1].
        training: drop; else the input is returned.
        inplace: write the result over `input`.
        seed: 64-bit seed of the mask. None draws one from torch's generator.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(dropout3d, (input,), input, p, training, inplace, seed=seed)
    return _drop_channels("dropout3d", (4, 5), input, p, training, inplace, seed, "inverted")


def alpha_dropout(
    input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False, *, seed: int | None = None
) -> Tensor:
    """Equivalent to `F.alpha_dropout(input, p, training, inplace)`, with another stream of random bits.

    For self-normalising networks (Klambauer et al., 2017): dropped values become what SELU tends to, -1.758, and all
    are scaled and shifted so that a mean of 0 and a variance of 1 stay. The mask is that of `dropout`; nothing is kept
    for backward but the seed. `p` = 1 gives zeros, as in stock.

    Args:
        input: any shape; float32, float64, bfloat16 or float16.
        p: probability of dropping a value, in [0, 1].
        training: drop; else the input is returned.
        inplace: write the result over `input`.
        seed: 64-bit seed of the mask. None draws one from torch's generator.

    Returns:
        A tensor like `input`; `input` itself if `inplace` or nothing is to be done.

    Raises:
        ValueError: `p` outside [0, 1] or NaN; `seed` that does not fit 64 bits.
        TypeError: `input` is not a tensor.
        NotImplementedError: `input` of another dtype, or on a device without a backend.
        RuntimeError: `inplace` on a leaf that requires grad.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(alpha_dropout, (input,), input, p, training, inplace, seed=seed)
    check_dropout(p)
    if not training or p == 0:
        return input
    return drop("alpha_dropout", input, p, "alpha", seed, inplace)


def feature_alpha_dropout(
    input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False, *, seed: int | None = None
) -> Tensor:
    """Equivalent to `F.feature_alpha_dropout(input, p, training, inplace)`, with another stream of random bits.

    `alpha_dropout` of whole channels, with the mask of `dropout1d`.

    Args:
        input: (N, C, *); float32, float64, bfloat16 or float16.
        p: probability of dropping a channel, in [0, 1].
        training: drop; else the input is returned.
        inplace: write the result over `input`.
        seed: 64-bit seed of the mask. None draws one from torch's generator.

    Raises:
        ValueError: `p` outside [0, 1] or NaN; `seed` that does not fit 64 bits.
        TypeError: `input` is not a tensor.
        RuntimeError: `input` of fewer than 2 dimensions; `inplace` on a leaf that requires grad.
        NotImplementedError: `input` of another dtype, or on a device without a backend.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(feature_alpha_dropout, (input,), input, p, training, inplace, seed=seed)
    check_dropout(p)
    check_types("feature_alpha_dropout", {"input": input}, {})
    if input.dim() < 2:
        raise RuntimeError(f"feature_alpha_dropout: input has {input.dim()} dimensions; it takes at least 2")
    if not training or p == 0:
        return input
    return _feature_dropout("feature_alpha_dropout", input, None, 2, p, "alpha", seed, inplace)


def drop_path(
    x: Tensor,
    p: float = 0.0,
    residual: Tensor | None = None,
    mode: str = "row",
    *,
    training: bool = True,
    scale_by_keep: bool = True,
    seed: int | None = None,
) -> Tensor:
    """Equivalent to `residual + torchvision.ops.stochastic_depth(x, p, mode, training)`, in one pass.

    Stochastic depth (Huang et al., "Deep networks with stochastic depth", 2016): a whole sample of the branch `x` is
    dropped with probability `p`, and the others are divided by 1 - p. Sample n has word n of the mask's stream; see
    `dropout`. Nothing is kept for backward but the seed, and the residual's gradient is `grad_output` itself.

    Args:
        x: (N, *), the result of a block; float32, float64, bfloat16 or float16.
        p: probability of dropping a sample, in [0, 1].
        residual: of `x`'s shape, dtype and device (under autocast, of another dtype too), what the block was given; or
            None.
        mode: "row" has a mask value for each sample, "batch" one for all.
        training: drop; else `x + residual`.
        scale_by_keep: divide by 1 - p.
        seed: 64-bit seed of the mask. None draws one from torch's generator.

    Returns:
        A tensor like `x`; `x` itself where there is no residual and nothing to be dropped.

    Raises:
        ValueError: `p` outside [0, 1] or NaN; unknown `mode`; `seed` that does not fit 64 bits.
        TypeError: `x` is not a tensor.
        RuntimeError: `residual` of another shape, dtype or device; `x` without a dimension for samples.
        NotImplementedError: `x` of another dtype, or on a device without a backend.
    """
    if has_torch_function_variadic(x, residual):
        return handle_torch_function(
            drop_path,
            (x, residual),
            x,
            p,
            residual,
            mode,
            training=training,
            scale_by_keep=scale_by_keep,
            seed=seed,
        )
    check_dropout(p)
    if mode not in ("row", "batch"):
        raise ValueError(f"mode has to be 'row' or 'batch', but got {mode!r}")
    check_types("drop_path", {"x": x, "residual": residual}, {})
    if residual is not None and residual.shape != x.shape:
        shapes = tuple(residual.shape), tuple(x.shape)
        raise RuntimeError(f"drop_path: residual has shape {shapes[0]}; it takes that of x, {shapes[1]}")
    if not training or p == 0:
        return x if residual is None else residual + x
    scaling = "inverted" if scale_by_keep else "classic"
    return _feature_dropout("drop_path", x, residual, 1 if mode == "row" else 0, p, scaling, seed)
