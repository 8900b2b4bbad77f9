"""Stochastic depth: residual blocks that are left out at random."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import functional as F
from ..functional._arguments import check_dropout


def kept_samples(samples: int, p: float) -> int:
    """How many samples of a batch a block with that probability of being dropped runs on: never none."""
    return min(samples, max(1, int(samples * (1 - p) + 0.5)))


class StochasticDepth(nn.Module):
    r"""A residual block, x + block(x), that training leaves out for some samples (Huang et al., 2016).

    Evaluation is x + block(x). In training, by mode:

    - "row" and "batch": x + drop_path(block(x)), each sample by itself or the batch as a whole; see
      `functional.drop_path`. The block runs on every sample.
    - "skip": the block runs on the kept samples only, as in DINOv2 (Oquab et al., 2023). Of N samples
      n = max(1, round(N (1 - p))) are chosen uniformly without replacement (`torch.randperm` on the input's device, of
      torch's generator), and x + N / n block(x) is the result for them, x for the others. Every sample is kept with the
      same probability n / N, so that the expectation is x + block(x), as evaluation has it, for any p and N. Their
      number is always the same: shapes depend on no data, and the host never waits for the GPU. p = 1 leaves the block
      out.

    A block with a BatchNorm inside sees a smaller batch in mode "skip": it normalises by statistics of the n kept
    samples, and its running statistics average over those, where "row" takes all samples. With n = 1 and one value a
    channel it raises, as for any such batch.

    Args:
        block: takes a batch (N, \*) and returns one of the same shape.
        p: probability of *dropping* the block, in [0, 1]. (The paper's p is the probability of survival.)
        mode: "row", "batch" or "skip".

    Raises:
        ValueError: `p` outside [0, 1] or NaN; unknown `mode`.
    """

    def __init__(self, block: nn.Module, p: float = 0.5, mode: str = "row") -> None:
        check_dropout(p, "inverted")
        if mode not in ("row", "batch", "skip"):
            raise ValueError(f"mode has to be 'row', 'batch' or 'skip', but got {mode!r}")
        super().__init__()
        self.block = block
        self.p = p
        self.mode = mode

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The block's other arguments are given to it as they are: with "skip" none may have a row for each sample."""
        if self.mode != "skip":
            branch = self.block(input, *args, **kwargs)
            return F.drop_path(branch, self.p, residual=input, mode=self.mode, training=self.training)
        if not self.training or self.p == 0:
            return input + self.block(input, *args, **kwargs)
        if self.p == 1:
            return input
        samples = input.shape[0]
        kept = kept_samples(samples, self.p)
        index = torch.randperm(samples, device=input.device)[:kept]
        rows, skip = F.branch_samples(input, index)
        branch = self.block(rows, *args, **kwargs)
        dtype = torch.promote_types(skip.dtype, branch.dtype)  # they differ under autocast
        return F.add_samples(skip.to(dtype), branch.to(dtype), index, samples / max(1, kept))

    def extra_repr(self) -> str:
        return f"p={self.p}, mode={self.mode!r}"
