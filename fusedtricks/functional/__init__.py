"""The operators as functions, with the arguments of `torch.nn.functional`.

Each goes through PyTorch's dispatcher to one C++ or CUDA kernel per direction. The kernels take dense float32, float64,
bfloat16 and float16 tensors. For any other tensor (integers, sparse and nested tensors, DTensor and other subclasses,
devices without a backend) stock's functions answer, with stock's result or error; `fallbacks()` counts such calls, and
with `FUSEDTRICKS_STRICT=1` in the environment they raise NotImplementedError.

`torch.func` transforms and forward-mode differentiation do not support C++ autograd functions, so there the same values
come from the eager composition in `fusedtricks.eager`. So they do when a model is traced by `torch.jit.trace`, or
exported in evaluation mode (`torch.export`, ONNX): what comes out then needs none of our operators.
"""

from ._act_dropout import act_dropout
from ._activation import (
    activation,
    elu,
    gelu,
    hardsigmoid,
    hardswish,
    leaky_relu,
    mish,
    relu,
    relu6,
    selu,
    sigmoid,
    silu,
    softplus,
    tanh,
)
from ._arguments import ACTIVATIONS
from ._batch_norm_act import batch_norm_act
from ._batch_norm_act_max_pool2d import batch_norm_act_max_pool2d
from ._cat import cat
from ._drop_connect import (
    drop_connect_conv1d,
    drop_connect_conv2d,
    drop_connect_conv3d,
    drop_connect_linear,
    drop_connect_moments,
)
from ._dropout import dropout
from ._feature_dropout import (
    alpha_dropout,
    drop_path,
    dropout1d,
    dropout2d,
    dropout3d,
    feature_alpha_dropout,
)
from ._fractional_max_pool import fractional_max_pool2d, fractional_max_pool3d
from ._kernels import fallbacks
from ._samples import add_samples, branch_samples, select_samples

__all__ = [
    "ACTIVATIONS",
    "act_dropout",
    "activation",
    "add_samples",
    "alpha_dropout",
    "batch_norm_act",
    "batch_norm_act_max_pool2d",
    "branch_samples",
    "cat",
    "drop_connect_conv1d",
    "drop_connect_conv2d",
    "drop_connect_conv3d",
    "drop_connect_linear",
    "drop_connect_moments",
    "drop_path",
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "elu",
    "fallbacks",
    "feature_alpha_dropout",
    "fractional_max_pool2d",
    "fractional_max_pool3d",
    "gelu",
    "hardsigmoid",
    "hardswish",
    "leaky_relu",
    "mish",
    "relu",
    "relu6",
    "select_samples",
    "selu",
    "sigmoid",
    "silu",
    "softplus",
    "tanh",
]
