"""The forwards of our modules as TorchScript compiles them: plain torch operations on a module's own attributes.

`act_parameters` is for `layers.activate`.
"""

from collections.abc import Callable
from typing import Any, Optional

import torch.nn.functional as F
from torch import Tensor, nn

from .. import nn as ftnn
from .layers import activate, classic_dropout


def normalised(self: Any, input: Tensor) -> Tensor:
    """Stock BatchNorm's forward."""
    self._check_input_dim(input)
    factor = 0.0 if self.momentum is None else self.momentum
    if self.training and self.track_running_stats and self.num_batches_tracked is not None:
        self.num_batches_tracked.add_(1)
        if self.momentum is None:
            factor = 1.0 / float(self.num_batches_tracked)
    has_no_statistics = self.running_mean is None and self.running_var is None
    return F.batch_norm(
        input,
        self.running_mean if not self.training or self.track_running_stats else None,
        self.running_var if not self.training or self.track_running_stats else None,
        self.weight,
        self.bias,
        self.training or has_no_statistics,
        factor,
        self.eps,
    )


def batch_norm_act(self: Any, input: Tensor, residual: Optional[Tensor] = None) -> Tensor:  # noqa: UP045
    """`BatchNormAct2d`."""
    z = self.normalised(input)
    if residual is not None:
        z = z + residual
    return F.dropout(activate(z, self.act, self.act_parameters), float(self.p), self.training)


def batch_norm_act_max_pool2d(self: Any, input: Tensor) -> Tensor:
    """`BatchNormActMaxPool2d`."""
    y = activate(self.normalised(input), self.act, self.act_parameters)
    return F.max_pool2d(y, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)


def act_dropout(self: Any, input: Tensor, residual: Optional[Tensor] = None) -> Tensor:  # noqa: UP045
    """`ActDropout`."""
    y = F.dropout(activate(input, self.act, self.act_parameters), float(self.p), self.training)
    return y if residual is None else y + residual


def linear_act_dropout(self: Any, input: Tensor, residual: Optional[Tensor] = None) -> Tensor:  # noqa: UP045
    """`LinearActDropout`."""
    z = F.linear(input, self.weight, self.bias)
    y = F.dropout(activate(z, self.act, self.act_parameters), float(self.p), self.training)
    return y if residual is None else y + residual


def dropout(self: Any, input: Tensor) -> Tensor:
    """`Dropout`, in both modes."""
    if self.mode == "inverted":
        return F.dropout(input, float(self.p), self.training, self.inplace)
    return classic_dropout(input, float(self.p), self.training, self.inplace)


def fractional_max_pool2d(self: Any, input: Tensor) -> Any:
    """`FractionalMaxPool2d`."""
    y, indices = F.fractional_max_pool2d_with_indices(
        input, self.kernel_size, self.output_size, self.output_ratio, True, self._random_samples
    )
    y = activate(y, self.act, self.act_parameters)
    if self.return_indices:
        return y, indices
    else:  # TorchScript compiles one branch
        return y


def fractional_max_pool3d(self: Any, input: Tensor) -> Any:
    """`FractionalMaxPool3d`."""
    y, indices = F.fractional_max_pool3d_with_indices(
        input, self.kernel_size, self.output_size, self.output_ratio, True, self._random_samples
    )
    y = activate(y, self.act, self.act_parameters)
    if self.return_indices:
        return y, indices
    else:  # TorchScript compiles one branch
        return y


NORMS: tuple[type[nn.Module], ...] = (
    *(ftnn.BatchNormAct1d, ftnn.BatchNormAct2d, ftnn.BatchNormAct3d),
    *(ftnn.BatchNormReLU1d, ftnn.BatchNormReLU2d, ftnn.BatchNormReLU3d),
    ftnn.BatchNormActMaxPool2d,
)
FORWARDS: dict[type[nn.Module], Callable[..., Any]] = {
    **dict.fromkeys(NORMS, batch_norm_act),
    ftnn.BatchNormActMaxPool2d: batch_norm_act_max_pool2d,
    ftnn.ActDropout: act_dropout,
    ftnn.LinearActDropout: linear_act_dropout,
    ftnn.Dropout: dropout,
    ftnn.FractionalMaxPool2d: fractional_max_pool2d,
    ftnn.FractionalMaxPool3d: fractional_max_pool3d,
}
