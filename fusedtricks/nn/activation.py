"""The activations as modules: each subclasses the stock module of the same name and calls the fused function."""

from __future__ import annotations

from torch import Tensor, nn

from .. import functional as F
from ._tracing import Proxy, traced


class ReLU(nn.ReLU):
    """Equivalent to `torch.nn.ReLU(inplace)`."""

    def forward(self, input: Tensor) -> Tensor:
        if type(input) is not Tensor and isinstance(input, Proxy):
            return traced(self, input)
        return F.relu(input, self.inplace)


class ReLU6(nn.ReLU6):
    """Equivalent to `torch.nn.ReLU6(inplace)`."""

    def forward(self, input: Tensor) -> Tensor:
        if type(input) is not Tensor and isinstance(input, Proxy):
            return traced(self, input)
        return F.relu6(input, self.inplace)


class LeakyReLU(nn.LeakyReLU):
    """Equivalent to `torch.nn.LeakyReLU(negative_slope, inplace)`; keeps one tensor for backward, in place or not."""

    def forward(self, input: Tensor) -> Tensor:
        if type(input) is not Tensor and isinstance(input, Proxy):
            return traced(self, input)
        return F.leaky_relu(input, self.negative_slope, self.inplace)


class ELU(nn.ELU):
    """Equivalent to `torch.nn.ELU(alpha, inplace)`."""

    def forward(self, input: Tensor) -> Tensor:
        if type(input) is not Tensor and isinstance(input, Proxy):
            return traced(self, input)
        return F.elu(input, self.alpha, self.inplace)


class SELU(nn.SELU):
    """Equivalent to `torch.nn.SELU(inplace)`."""

    def forward(self, input: Tensor) -> Tensor:
        if type(input) is not Tensor and isinstance(input, Proxy):
            return traced(self, input)
        return F.selu(input, self.inplace)


class GELU(nn.GELU):
    """Equivalent to `torch.nn.GELU(approximate)`."""

    def forward(self, input: Tensor) -> Tensor:
        if type(input) is not Tensor and isinstance(input, Proxy):
            return traced(self, input)
        return F.gelu(input, self.approximate)


class Sigmoid(nn.Sigmoid):
    """Equivalent to `torch.nn.Sigmoid()`."""

    def forward(self, input: Tensor) -> Tensor:
        if type(input) is not Tensor and isinstance(input, Proxy):
            return traced(self, input)
        return F.sigmoid(input)


class Tanh(nn.Tanh):
    """Equivalent to `torch.nn.Tanh()`."""

    def forward(self, input: Tensor) -> Tensor:
        if type(input) is not Tensor and isinstance(input, Proxy):
            return traced(self, input)
        return F.tanh(input)


class SiLU(nn.SiLU):
    """Equivalent to `torch.nn.SiLU(inplace)`."""

    def forward(self, input: Tensor) -> Tensor:
        if type(input) is not Tensor and isinstance(input, Proxy):
            return traced(self, input)
        return F.silu(input, self.inplace)


class Mish(nn.Mish):
    """Equivalent to `torch.nn.Mish(inplace)`."""

    def forward(self, input: Tensor) -> Tensor:
        if type(input) is not Tensor and isinstance(input, Proxy):
            return traced(self, input)
        return F.mish(input, self.inplace)


class Hardswish(nn.Hardswish):
    """Equivalent to `torch.nn.Hardswish(inplace)`."""

    def forward(self, input: Tensor) -> Tensor:
        if type(input) is not Tensor and isinstance(input, Proxy):
            return traced(self, input)
        return F.hardswish(input, self.inplace)


class Hardsigmoid(nn.Hardsigmoid):
    """Equivalent to `torch.nn.Hardsigmoid(inplace)`."""

    def forward(self, input: Tensor) -> Tensor:
        if type(input) is not Tensor and isinstance(input, Proxy):
            return traced(self, input)
        return F.hardsigmoid(input, self.inplace)


class Softplus(nn.Softplus):
    """Equivalent to `torch.nn.Softplus(beta, threshold)`."""

    def forward(self, input: Tensor) -> Tensor:
        if type(input) is not Tensor and isinstance(input, Proxy):
            return traced(self, input)
        return F.softplus(input, self.beta, self.threshold)
