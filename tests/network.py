"""A small network that uses every op."""

from __future__ import annotations

from torch import Tensor, nn

import fusedtricks.nn as ftnn
from fusedtricks.functional import dropout


class Network(nn.Module):
    """BatchNorm with and without a residual, an activation, and dropout with an explicit seed."""

    def __init__(self) -> None:
        super().__init__()
        self.bn1 = ftnn.BatchNormAct2d(4, act="leaky_relu", act_kwargs={"negative_slope": 0.2})
        self.bn2 = ftnn.BatchNormAct2d(4, act="silu", momentum=None)
        self.act = ftnn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        h = dropout(self.bn1(x), 0.3, self.training, seed=3)
        return self.act(self.bn2(h, x) * 2)
