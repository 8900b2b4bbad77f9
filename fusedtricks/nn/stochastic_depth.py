"""Stochastic depth: residual blocks that are skipped at random."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import functional as F
from ..functional._arguments import check_dropout
from ._tracing import Proxy, traced


def kept_samples(samples: int, p: float) -> int:
    """How many samples of a batch a block runs on if it is dropped with probability `p`: at least one."""
    return min(samples, max(1, int(samples * (1 - p) + 0.5)))


class StochasticDepth(nn.Module):
    r"""A residual block, x + block(x), that training skips for some samples (Huang et al., 2016).

    Evaluation computes x + block(x). Training depends on the mode:

    - "row" and "batch": x + drop_path(block(x)), dropping each sample independently or the whole batch; see
      `functional.drop_path`. The block runs on every sample.
    - "skip": the block runs on the kept samples only, as in DINOv2 (Oquab et al., 2023). n = max(1, round(N (1 - p)))
      of N samples are chosen uniformly without replacement (by `torch.randperm` on the input's device with torch's
      generator). The result is x + N / n block(x) for them and x for the others. Each sample is kept with probability
      n / N, so for any p and N the expectation is x + block(x), as in evaluation. Because n is fixed, shapes do not
      depend on data and the host never waits for the GPU. p = 1 always skips the block.

    A BatchNorm inside the block sees a smaller batch in mode "skip": it normalises with the statistics of the n kept
    samples and updates its running statistics from them, whereas "row" uses all samples. With n = 1 and one value per
    channel it raises an error, as for any such batch.

    Args:
        block: takes a batch (N, \*) and returns a tensor of the same shape.
        p: probability of *dropping* the block, in [0, 1]. (The paper's p is the survival probability.)
        mode: "row", "batch" or "skip".

    Raises:
        ValueError: `p` outside [0, 1] or NaN; unknown `mode`.
    """

    def __init__(self, block: nn.Module, p: float = 0.5, mode: str = "row") -> None:
        check_dropout(p, "inverted")
        if mode not in ("row", "batch", "skip"):
            raise ValueError(f"mode must be 'row', 'batch' or 'skip', but got {mode!r}")
        super().__init__()
        self.block = block
        self.p = p
        self.mode = mode

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Passes other arguments to the block unchanged: with "skip", none of them may have one row per sample."""
        if type(input) is not Tensor and isinstance(input, Proxy):
            return traced(self, input, *args, **kwargs)
        if self.mode != "skip":
            branch = self.block(input, *args, **kwargs)
            return F.drop_path(branch, self.p, residual=input, mode=self.mode, training=self.training)
        if not self.training or self.p == 0:
            return F.drop_path(self.block(input, *args, **kwargs), residual=input, training=False)
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
