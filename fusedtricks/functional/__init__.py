"""The operators as functions, with the arguments of `torch.nn.functional`.

Each goes through PyTorch's dispatcher to one C++ or CUDA kernel a direction. Under `torch.func` transforms and
forward-mode differentiation, which C++ autograd functions do not take part in, the same values come from the eager
composition in `fusedtricks.eager`; also where a model is exported (`torch.export`, ONNX) in evaluation mode, which then
needs no operator of ours.
"""

from ._activation import (
    activation,
    elu,
    gelu,
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
from ._batch_norm import batch_norm_act
from ._batch_norm_pool import batch_norm_act_max_pool2d
from ._calls import ACTIVATIONS
from ._dropout import dropout

__all__ = [
    "ACTIVATIONS",
    "activation",
    "batch_norm_act",
    "batch_norm_act_max_pool2d",
    "dropout",
    "elu",
    "gelu",
    "hardswish",
    "leaky_relu",
    "mish",
    "relu",
    "relu6",
    "selu",
    "sigmoid",
    "silu",
    "softplus",
    "tanh",
]
