"""Drop-in modules with stock names, arguments, parameters and buffers, built on the fused functions."""

from torch.nn import Identity

from .act_dropout import ActDropout, LinearActDropout
from .activation import (
    ELU,
    GELU,
    SELU,
    Hardsigmoid,
    Hardswish,
    LeakyReLU,
    Mish,
    ReLU,
    ReLU6,
    Sigmoid,
    SiLU,
    Softplus,
    Tanh,
)
from .batchnorm import (
    BatchNormAct1d,
    BatchNormAct2d,
    BatchNormAct3d,
    BatchNormReLU1d,
    BatchNormReLU2d,
    BatchNormReLU3d,
)
from .batchnorm_pool import BatchNormActMaxPool2d
from .drop_connect import DropConnectConv1d, DropConnectConv2d, DropConnectConv3d, DropConnectLinear
from .dropout import AlphaDropout, Dropout, Dropout1d, Dropout2d, Dropout3d, DropPath, FeatureAlphaDropout
from .pooling import FractionalMaxPool2d, FractionalMaxPool3d
from .stochastic_depth import StochasticDepth
from .sync import SyncBatchNormAct, SyncBatchNormActMaxPool2d, convert_sync_batchnorm

__all__ = [
    "ELU",
    "GELU",
    "SELU",
    "ActDropout",
    "AlphaDropout",
    "BatchNormAct1d",
    "BatchNormAct2d",
    "BatchNormAct3d",
    "BatchNormActMaxPool2d",
    "BatchNormReLU1d",
    "BatchNormReLU2d",
    "BatchNormReLU3d",
    "DropConnectConv1d",
    "DropConnectConv2d",
    "DropConnectConv3d",
    "DropConnectLinear",
    "DropPath",
    "Dropout",
    "Dropout1d",
    "Dropout2d",
    "Dropout3d",
    "FeatureAlphaDropout",
    "FractionalMaxPool2d",
    "FractionalMaxPool3d",
    "Hardsigmoid",
    "Hardswish",
    "Identity",
    "LeakyReLU",
    "LinearActDropout",
    "Mish",
    "ReLU",
    "ReLU6",
    "SiLU",
    "Sigmoid",
    "Softplus",
    "StochasticDepth",
    "SyncBatchNormAct",
    "SyncBatchNormActMaxPool2d",
    "Tanh",
    "convert_sync_batchnorm",
]
