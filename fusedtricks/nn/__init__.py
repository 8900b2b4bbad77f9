"""Drop-in modules: the stock names, arguments, parameters and buffers, on the fused functions."""

from torch.nn import Identity

from .activation import (
    ELU,
    GELU,
    SELU,
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
from .dropout import Dropout
from .sync import SyncBatchNormAct, SyncBatchNormActMaxPool2d, convert_sync_batchnorm

__all__ = [
    "ELU",
    "GELU",
    "SELU",
    "BatchNormAct1d",
    "BatchNormAct2d",
    "BatchNormAct3d",
    "BatchNormActMaxPool2d",
    "BatchNormReLU1d",
    "BatchNormReLU2d",
    "BatchNormReLU3d",
    "Dropout",
    "Hardswish",
    "Identity",
    "LeakyReLU",
    "Mish",
    "ReLU",
    "ReLU6",
    "SiLU",
    "Sigmoid",
    "Softplus",
    "SyncBatchNormAct",
    "SyncBatchNormActMaxPool2d",
    "Tanh",
    "convert_sync_batchnorm",
]
