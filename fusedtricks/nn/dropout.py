"""Dropout as a module."""

from __future__ import annotations

from torch import Tensor, nn

from .. import functional as F
from ..functional._dropout import check_dropout


class Dropout(nn.Dropout):
    """Equivalent to `torch.nn.Dropout(p, inplace)`, with another stream of random bits; see `functional.dropout`.

    Args:
        p: probability of *dropping* a value, in [0, 1]. (The lecture's p is the probability of keeping.)
        inplace: write the result over the input.
        mode: "inverted", or "classic", which scales in evaluation instead of in training.

    Raises:
        ValueError: `p` outside [0, 1] or NaN; unknown `mode`.
    """

    def __init__(self, p: float = 0.5, inplace: bool = False, *, mode: str = "inverted") -> None:
        check_dropout(p, mode)
        super().__init__(p, inplace)
        self.mode = mode

    def forward(self, input: Tensor) -> Tensor:
        return F.dropout(input, self.p, self.training, self.inplace, mode=self.mode)

    def extra_repr(self) -> str:
        mode = "" if self.mode == "inverted" else f", mode={self.mode!r}"
        return super().extra_repr() + mode
