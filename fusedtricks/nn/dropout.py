"""Modules for dropout of values, channels and samples."""

from __future__ import annotations

from torch import Tensor, nn

from .. import functional as F
from ..functional._arguments import check_dropout
from ._tracing import Proxy, traced


class Dropout(nn.Dropout):
    """Equivalent to `torch.nn.Dropout(p, inplace)`, with different random numbers; see `functional.dropout`.

    Args:
        p: probability of *dropping* a value, in [0, 1]. (The lecture's p is the probability of keeping.)
        inplace: write the result over the input.
        mode: "inverted", or "classic", which scales in evaluation instead of training.

    Raises:
        ValueError: `p` outside [0, 1] or NaN; unknown `mode`.
    """

    def __init__(self, p: float = 0.5, inplace: bool = False, *, mode: str = "inverted") -> None:
        check_dropout(p, mode)
        super().__init__(p, inplace)
        self.mode = mode

    def forward(self, input: Tensor) -> Tensor:
        if type(input) is not Tensor and isinstance(input, Proxy):
            return traced(self, input)
        return F.dropout(input, self.p, self.training, self.inplace, mode=self.mode)

    def extra_repr(self) -> str:
        mode = "" if self.mode == "inverted" else f", mode={self.mode!r}"
        return super().extra_repr() + mode


class Dropout1d(nn.Dropout1d):
    """Equivalent to `torch.nn.Dropout1d(p, inplace)`, with different random numbers; see `functional.dropout1d`."""

    def forward(self, input: Tensor) -> Tensor:
        if type(input) is not Tensor and isinstance(input, Proxy):
            return traced(self, input)
        return F.dropout1d(input, self.p, self.training, self.inplace)


class Dropout2d(nn.Dropout2d):
    """Equivalent to `torch.nn.Dropout2d(p, inplace)`, with different random numbers; see `functional.dropout2d`."""

    def forward(self, input: Tensor) -> Tensor:
        if type(input) is not Tensor and isinstance(input, Proxy):
            return traced(self, input)
        return F.dropout2d(input, self.p, self.training, self.inplace)


class Dropout3d(nn.Dropout3d):
    """Equivalent to `torch.nn.Dropout3d(p, inplace)`, with different random numbers; see `functional.dropout3d`."""

    def forward(self, input: Tensor) -> Tensor:
        if type(input) is not Tensor and isinstance(input, Proxy):
            return traced(self, input)
        return F.dropout3d(input, self.p, self.training, self.inplace)


class AlphaDropout(nn.AlphaDropout):
    """Equivalent to `torch.nn.AlphaDropout(p, inplace)`, with different random numbers.

    See `functional.alpha_dropout`. As in the stock module, `inplace` has no effect.
    """

    def forward(self, input: Tensor) -> Tensor:
        if type(input) is not Tensor and isinstance(input, Proxy):
            return traced(self, input)
        return F.alpha_dropout(input, self.p, self.training)


class FeatureAlphaDropout(nn.FeatureAlphaDropout):
    """Equivalent to `torch.nn.FeatureAlphaDropout(p, inplace)`, with different random numbers.

    See `functional.feature_alpha_dropout`. As in the stock module, `inplace` has no effect.
    """

    def forward(self, input: Tensor) -> Tensor:
        if type(input) is not Tensor and isinstance(input, Proxy):
            return traced(self, input)
        return F.feature_alpha_dropout(input, self.p, self.training)


class DropPath(nn.Module):
    """Equivalent to `timm.layers.DropPath(drop_prob, scale_by_keep)`, then `+ residual`; see `functional.drop_path`.

    `forward(x, residual=None)` takes a block's output (N, *) and the block's input.

    Args:
        drop_prob: probability of dropping a sample, in [0, 1].
        scale_by_keep: divide the kept samples by 1 - drop_prob.

    Raises:
        ValueError: `drop_prob` outside [0, 1] or NaN.
    """

    def __init__(self, drop_prob: float = 0.0, scale_by_keep: bool = True) -> None:
        check_dropout(drop_prob)
        super().__init__()
        self.drop_prob = drop_prob
        self.scale_by_keep = scale_by_keep

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """drop_path(x) + residual; residual has x's shape and dtype, or is None."""
        if type(x) is not Tensor and isinstance(x, Proxy):
            return traced(self, x, residual)
        return F.drop_path(x, self.drop_prob, residual, training=self.training, scale_by_keep=self.scale_by_keep)

    def extra_repr(self) -> str:
        return f"drop_prob={round(self.drop_prob, 3):0.3f}"
