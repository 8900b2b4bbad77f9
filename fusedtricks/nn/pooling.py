"""Fractional max-pooling modules: they subclass the stock modules of the same name and call the fused functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from .. import functional as F
from ..functional._fractional_max_pool import check_fractional_max_pool
from ._tracing import Proxy, traced


class _FractionalMaxPool(nn.Module):
    """Shared by the two modules. Must come before the stock module in the list of base classes."""

    rank: int
    pool: Callable[..., Any]
    return_indices: bool

    def __init__(
        self,
        kernel_size: int | Sequence[int],
        output_size: int | Sequence[int] | None = None,
        output_ratio: float | Sequence[float] | None = None,
        return_indices: bool = False,
        _random_samples: Tensor | None = None,
        *,
        act: str = "identity",
        act_kwargs: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(kernel_size, output_size, output_ratio, return_indices, _random_samples)
        name = type(self).__name__
        check_fractional_max_pool(name, kernel_size, output_size, output_ratio, act, act_kwargs, self.rank)
        self.act = act
        self.act_kwargs = dict(act_kwargs or {})

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if type(input) is not Tensor and isinstance(input, Proxy):
            return traced(self, input)
        return self.pool(
            input,
            self.kernel_size,
            self.output_size,
            self.output_ratio,
            self.return_indices,
            self._random_samples,
            act=self.act,
            act_kwargs=self.act_kwargs,
        )

    def extra_repr(self) -> str:
        given = "output_ratio" if self.output_size is None else "output_size"
        parts = [f"{name}={getattr(self, name)}" for name in ("kernel_size", given)]
        parts += ["return_indices=True"] * self.return_indices
        parts += [f"act={self.act!r}"] * (self.act != "identity")
        parts += [f"act_kwargs={self.act_kwargs}"] * bool(self.act_kwargs)
        return ", ".join(parts)


class FractionalMaxPool2d(_FractionalMaxPool, nn.FractionalMaxPool2d):
    """Equivalent to `torch.nn.FractionalMaxPool2d(…)`, then `act`; see `functional.fractional_max_pool2d`.

    Args:
        kernel_size: of a window, (kH, kW) or one number for both.
        output_size: (oH, oW) or one number for both.
        output_ratio: the output size as a fraction of the input size, between 0 and 1: two numbers or one for both.
        return_indices: also return the positions of the maxima, for `nn.MaxUnpool2d`.
        _random_samples: (N, C, 2), random numbers to derive the windows from, instead of drawing them.
        act: one of `functional.ACTIVATIONS` that never decreases.
        act_kwargs: parameters of the activation.

    Raises:
        ValueError: neither or both of `output_size` and `output_ratio` given; `output_ratio` outside (0, 1);
            `kernel_size` not positive; `act` unknown or not monotone.
        TypeError: a size has the wrong type; `act_kwargs` that the activation does not take.
        RuntimeError: a size has the wrong number of values.
    """

    rank = 2
    pool = staticmethod(F.fractional_max_pool2d)


class FractionalMaxPool3d(_FractionalMaxPool, nn.FractionalMaxPool3d):
    """Equivalent to `torch.nn.FractionalMaxPool3d(…)`, then `act`; see `functional.fractional_max_pool3d`.

    Arguments and errors: `FractionalMaxPool2d`, but sizes are (T, H, W) and `_random_samples` is (N, C, 3).
    """

    rank = 3
    pool = staticmethod(F.fractional_max_pool3d)
