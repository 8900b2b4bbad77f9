"""Dropout of whole channels and samples, alpha dropout, stochastic depth."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from .. import _C, eager
from ._arguments import check_dropout, check_tensors, signed_seed
from ._dropout import drop_by_composition, drop_by_operator
from ._route import Route, is_dynamo_compiling, ops, otherwise


def dropout1d(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, *, seed: int | None = None
) -> Tensor:
    """Equivalent to `F.dropout1d(input, p, training, inplace)`, with different random numbers.

    Drops whole channels (Tompson et al., "Efficient object localization using convolutional networks", 2015). Channel c
    of sample n uses word n C + c of the mask's stream; see `dropout`. Only the seed is kept for backward.

    Args:
        input: (N, C, L), or (C, L); float32, float64, bfloat16 or float16.
        p: probability of dropping a channel, in [0, 1].
        training: apply dropout; otherwise return the input.
        inplace: write the result over `input`.
        seed: 64-bit seed of the mask. None draws one from torch's generator.

    Returns:
        A tensor like `input`; `input` itself if `inplace` or if there is nothing to do.

    Raises:
        ValueError: `p` outside [0, 1] or NaN; `seed` does not fit 64 bits.
        TypeError: `input` is not a tensor.
        RuntimeError: `input` has another number of dimensions; `inplace` on a leaf that requires grad.
    """
    y = _dropped_channels(input, _DIMS_1D, p, seed, inplace) if training is True else None
    return otherwise(_DROPOUT1D, input, p, training, inplace, seed) if y is None else y


def dropout2d(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, *, seed: int | None = None
) -> Tensor:
    """Equivalent to `F.dropout2d(input, p, training, inplace)`, with different random numbers. See `dropout1d`.

    Args:
        input: (N, C, H, W); like stock, others with samples and channels are taken with a warning.
        p: probability of dropping a channel, in [0, 1].
        training: apply dropout; otherwise return the input.
        inplace: write the result over `input`.
        seed: 64-bit seed of the mask. None draws one from torch's generator.
    """
    y = _dropped_channels(input, _DIMS_2D, p, seed, inplace) if training is True else None
    return otherwise(_DROPOUT2D, input, p, training, inplace, seed) if y is None else y


def dropout3d(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, *, seed: int | None = None
) -> Tensor:
    """Equivalent to `F.dropout3d(input, p, training, inplace)`, with different random numbers. See `dropout1d`.

    Args:
        input: (N, C, D, H, W), or (C, D, H, W); like stock, others are taken with a warning.
        p: probability of dropping a channel, in [0, 1].
        training: apply dropout; otherwise return the input.
        inplace: write the result over `input`.
        seed: 64-bit seed of the mask. None draws one from torch's generator.
    """
    y = _dropped_channels(input, _DIMS_3D, p, seed, inplace) if training is True else None
    return otherwise(_DROPOUT3D, input, p, training, inplace, seed) if y is None else y


def alpha_dropout(
    input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False, *, seed: int | None = None
) -> Tensor:
    """Equivalent to `F.alpha_dropout(input, p, training, inplace)`, with different random numbers.

    For self-normalising networks (Klambauer et al., 2017): dropped values become SELU's lower limit, -1.758; then all
    values are scaled and shifted so that a mean of 0 and a variance of 1 are preserved. The mask is that of `dropout`;
    only the seed is kept for backward. `p` = 1 gives zeros, as in stock.

    Args:
        input: any shape; float32, float64, bfloat16 or float16.
        p: probability of dropping a value, in [0, 1].
        training: apply dropout; otherwise return the input.
        inplace: write the result over `input`.
        seed: 64-bit seed of the mask. None draws one from torch's generator.

    Returns:
        A tensor like `input`; `input` itself if `inplace` or if there is nothing to do.

    Raises:
        ValueError: `p` outside [0, 1] or NaN; `seed` does not fit 64 bits.
        TypeError: `input` is not a tensor.
        RuntimeError: `inplace` on a leaf that requires grad.
    """
    y = None
    if training is True and not is_dynamo_compiling():
        y = _C.dropout(input, p, "alpha", seed, inplace)
    return otherwise(_ALPHA_DROPOUT, input, p, training, inplace, seed) if y is None else y


def feature_alpha_dropout(
    input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False, *, seed: int | None = None
) -> Tensor:
    """Equivalent to `F.feature_alpha_dropout(input, p, training, inplace)`, with different random numbers.

    `alpha_dropout` for whole channels, with the mask of `dropout1d`.

    Args:
        input: (N, C, *); float32, float64, bfloat16 or float16.
        p: probability of dropping a channel, in [0, 1].
        training: apply dropout; otherwise return the input.
        inplace: write the result over `input`.
        seed: 64-bit seed of the mask. None draws one from torch's generator.

    Raises:
        ValueError: `p` outside [0, 1] or NaN; `seed` does not fit 64 bits.
        TypeError: `input` is not a tensor.
        RuntimeError: `input` has fewer than 2 dimensions; `inplace` on a leaf that requires grad.
    """
    y = None
    if training is True and isinstance(input, Tensor) and input.dim() >= 2 and not is_dynamo_compiling():
        y = _C.feature_dropout(input, None, 2, p, "alpha", seed, inplace)
    return otherwise(_FEATURE_ALPHA_DROPOUT, input, p, training, inplace, seed) if y is None else y


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

    Stochastic depth (Huang et al., "Deep networks with stochastic depth", 2016): whole samples of the branch `x` are
    dropped with probability `p`, the others divided by 1 - p. Sample n uses word n of the mask's stream; see `dropout`.
    Only the seed is kept for backward; the residual's gradient is `grad_output` itself.

    Args:
        x: (N, *), the output of a block; float32, float64, bfloat16 or float16.
        p: probability of dropping a sample, in [0, 1].
        residual: the block's input, of `x`'s shape, dtype and device (under autocast any dtype), or None.
        mode: "row" draws one mask value per sample, "batch" one for the whole batch.
        training: apply dropout; otherwise compute `x + residual`.
        scale_by_keep: divide by 1 - p.
        seed: 64-bit seed of the mask. None draws one from torch's generator.

    Returns:
        A tensor like `x`; `x` itself if there is no residual and nothing to drop.

    Raises:
        ValueError: `p` outside [0, 1] or NaN; unknown `mode`; `seed` does not fit 64 bits.
        TypeError: `x` is not a tensor.
        RuntimeError: `residual` has another shape, dtype or device; `x` has no dimension for samples.
    """
    y = None
    if training is True and p and mode in _MASK_DIMS and not is_dynamo_compiling() and _have_one_shape(x, residual):
        scaling = "inverted" if scale_by_keep else "classic"
        y = _C.feature_dropout(x, residual, _MASK_DIMS[mode], p, scaling, seed, False)
    arguments = (x, p, residual, mode, training, scale_by_keep, seed)
    return otherwise(_DROP_PATH, *arguments) if y is None else y


_MASK_DIMS = {"row": 1, "batch": 0}


def _have_one_shape(x: Any, residual: Any) -> bool:
    return residual is None or (isinstance(x, Tensor) and isinstance(residual, Tensor) and x.shape == residual.shape)


# Number of input dimensions -> number of leading dimensions that the mask has.
_DIMS_1D = {2: 1, 3: 2}
_DIMS_2D = {4: 2}
_DIMS_3D = {4: 1, 5: 2}


def _dropped_channels(input: Any, dims: dict[int, int], p: float, seed: int | None, inplace: bool) -> Tensor | None:
    """The fast path; None if it does not handle the call."""
    if is_dynamo_compiling() or not isinstance(input, Tensor) or input.dim() not in dims:
        return None
    return _C.feature_dropout(input, None, dims[input.dim()], p, "inverted", seed, inplace)


def _drop_by_operator(
    input: Tensor, residual: Tensor | None, mask_dims: int, p: float, mode: str, seed: int | None, inplace: bool = False
) -> Tensor:
    if not inplace:
        return ops.feature_dropout(input, residual, mask_dims, p, mode, signed_seed(seed))[0]
    ops.feature_dropout_(input, mask_dims, p, mode, signed_seed(seed))
    return input


def _drop_by_composition(
    input: Tensor, residual: Tensor | None, mask_dims: int, p: float, mode: str, seed: int | None, inplace: bool = False
) -> Tensor:
    result = eager.feature_dropout(input, residual, mask_dims, p, mode=mode, seed=seed)
    return input.copy_(result) if inplace else result


def _unchanged(input: Tensor, p: float, training: bool, **others: Any) -> Tensor | None:
    return input if not training or p == 0 else None


def _channels(
    function: Callable[..., Tensor],
    dims: dict[int, int],
    check_dims: Callable[[Tensor], None],
    mask_dims: int = 2,
    mode: str = "inverted",
) -> Route:
    """The route of a channel dropout. mask_dims: of the mask for an input with other dimensions than `dims`."""
    op = function.__name__
    stock = getattr(F, op)

    def check(input: Any, p: Any, training: Any, inplace: Any, seed: Any) -> None:
        check_dropout(p)
        signed_seed(seed)
        check_tensors(op, input=input)
        check_dims(input)

    def by_operator(input: Tensor, p: float, training: bool, inplace: bool, seed: int | None) -> Tensor:
        return _drop_by_operator(input, None, dims.get(input.dim(), mask_dims), p, mode, seed, inplace)

    def by_composition(input: Tensor, p: float, training: bool, inplace: bool, seed: int | None) -> Tensor:
        return _drop_by_composition(input, None, dims.get(input.dim(), mask_dims), p, mode, seed, inplace)

    def by_stock(input: Tensor, p: float, training: bool, inplace: bool, seed: int | None) -> Tensor:
        if seed is None:
            return stock(input, p, training, inplace)
        return by_composition(input, p, training, inplace, seed)

    return Route(
        function,
        ("input",),
        check=check,
        operator=by_operator,
        composition=by_composition,
        stock=by_stock,
        numbers=("p",),
        shortcut=_unchanged,
    )


def _check_dims_1d(input: Tensor) -> None:
    if input.dim() not in _DIMS_1D:
        raise RuntimeError(f"dropout1d: Expected 2D or 3D input, but received a {input.dim()}D input")


def _has_channels(op: str) -> Callable[[Tensor], None]:
    def check(input: Tensor) -> None:
        if input.dim() < 2:
            raise RuntimeError(f"{op}: input has {input.dim()} dimensions; at least 2 are needed")

    return check


def _warn(op: str, input: Tensor, what: str) -> None:
    """As stock does, with its words, so that filters of warnings know them; at the line that calls the function."""
    warnings.warn(f"{op}: Received a {input.dim()}{what}", stacklevel=8)


def _check_dims_2d(input: Tensor) -> None:
    """As stock, takes other inputs than images with a warning."""
    _has_channels("dropout2d")(input)
    if input.dim() == 3:
        what = "D input to dropout2d and assuming that channel-wise 1D dropout behavior is desired; use dropout1d"
        _warn("dropout2d", input, what)
    elif input.dim() != 4:
        _warn("dropout2d", input, "-D input to dropout2d, which is deprecated; it takes 4D, (N, C, H, W)")


def _check_dims_3d(input: Tensor) -> None:
    """As stock, takes other inputs than volumes with a warning, and drops their first dimension's elements."""
    if input.dim() < 1:
        raise RuntimeError("dropout3d: input has 0 dimensions; at least 1 is needed")
    if input.dim() not in _DIMS_3D:
        _warn("dropout3d", input, "-D input to dropout3d, which is deprecated; it takes 4D or 5D, (N, C, D, H, W)")


_DROPOUT1D = _channels(dropout1d, _DIMS_1D, _check_dims_1d)
_DROPOUT2D = _channels(dropout2d, _DIMS_2D, _check_dims_2d)
_DROPOUT3D = _channels(dropout3d, _DIMS_3D, _check_dims_3d, mask_dims=1)
_FEATURE_ALPHA_DROPOUT = _channels(feature_alpha_dropout, {}, _has_channels("feature_alpha_dropout"), mode="alpha")


def _check_alpha(input: Any, p: Any, training: Any, inplace: Any, seed: Any) -> None:
    check_dropout(p)
    signed_seed(seed)
    check_tensors("alpha_dropout", input=input)


def _alpha_by_stock(input: Tensor, p: float, training: bool, inplace: bool, seed: int | None) -> Tensor:
    if seed is None:
        return F.alpha_dropout(input, p, training, inplace)
    return drop_by_composition(input, p, "alpha", seed, inplace)


_ALPHA_DROPOUT = Route(
    alpha_dropout,
    ("input",),
    check=_check_alpha,
    operator=lambda training, **others: drop_by_operator(mode="alpha", **others),
    composition=lambda training, **others: drop_by_composition(mode="alpha", **others),
    stock=_alpha_by_stock,
    numbers=("p",),
    shortcut=_unchanged,
)


def _check_drop_path(x: Any, p: Any, residual: Any, mode: Any, training: Any, scale_by_keep: Any, seed: Any) -> None:
    check_dropout(p)
    signed_seed(seed)
    if mode not in _MASK_DIMS:
        raise ValueError(f"mode has to be 'row' or 'batch', but got {mode!r}")
    check_tensors("drop_path", x=x, residual=residual)
    if residual is not None and residual.shape != x.shape:
        shapes = tuple(residual.shape), tuple(x.shape)
        raise RuntimeError(f"drop_path: residual has shape {shapes[0]}; it needs that of x, {shapes[1]}")


def _undropped(x: Tensor, p: float, residual: Tensor | None, training: bool, **others: Any) -> Tensor | None:
    if training and p > 0:
        return None
    return x if residual is None else residual + x


def _as_mask(
    x: Tensor,
    p: float,
    residual: Tensor | None,
    mode: str,
    training: bool,
    scale_by_keep: bool,
    seed: int | None,
) -> dict[str, Any]:
    """The arguments of the equivalent dropout of samples."""
    scaling = "inverted" if scale_by_keep else "classic"
    return {"input": x, "residual": residual, "mask_dims": _MASK_DIMS[mode], "p": p, "mode": scaling, "seed": seed}


_DROP_PATH = Route(
    drop_path,
    ("x", "residual"),
    check=_check_drop_path,
    operator=lambda **arguments: _drop_by_operator(**_as_mask(**arguments)),
    composition=lambda **arguments: _drop_by_composition(**_as_mask(**arguments)),
    numbers=("p",),
    shortcut=_undropped,
)
