"""BatchNorm with what follows it: stock's layers, ours, and the reference."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from fusedtricks import eager
from fusedtricks import nn as fused_nn
from fusedtricks.stock import NormAct1d, NormAct2d, NormAct3d

from .check import Reference
from .op import Op, Pair, Shape

# By the number of the input's dimensions.
STOCK = {2: NormAct1d, 4: NormAct2d, 5: NormAct3d}
FUSED = {2: fused_nn.BatchNormAct1d, 4: fused_nn.BatchNormAct2d, 5: fused_nn.BatchNormAct3d}


def batch_norm(act: str, residual: bool = False, training: bool = True) -> Op:
    """activation(BatchNorm(x) [+ residual]), stock's layers as torchvision uses them and ours."""

    def make(shape: Shape) -> Pair:
        rank = len(shape)
        return alike(STOCK[rank](shape[1], act=act), FUSED[rank](shape[1], act=act), training)

    names = ["batch_norm", *["add"] * residual, *[act] * (act != "identity"), *["eval"] * (not training)]
    return Op(
        "_".join(names),
        make,
        reference=norm_reference(act, training),
        flips=True,
        inputs=2 if residual else 1,
        training=training,
        forward_tensors=3 if residual else 2,
        backward_tensors=5 if residual else 3,
    )


def alike(stock: nn.Module, fused: nn.Module, training: bool = True) -> Pair:
    """Both with the same random weight and bias of their BatchNorm, in the same mode."""
    nn.init.uniform_(stock.get_parameter("weight"), 0.5, 1.5)
    nn.init.normal_(stock.get_parameter("bias"), std=0.1)
    fused.load_state_dict(stock.state_dict())
    for module in (stock, fused):
        module.train(training).requires_grad_(training)
    return stock, fused


def norm_reference(act: str, training: bool = True, p: float = 0.0) -> Reference:
    """`eager.batch_norm_act` with the parameters and buffers of the model."""

    def reference(model: Any, seed: int, x: Tensor, residual: Tensor | None = None) -> Tensor:
        state = norm_state(model, training)
        return eager.batch_norm_act(x, residual=residual, act=act, p=p, seed=seed, **state)

    return reference


def norm_state(norm: Any, training: bool) -> dict[str, Any]:
    """The arguments of `eager.batch_norm_act` that a BatchNorm layer holds."""
    tensors = dict.fromkeys(("running_mean", "running_var", "weight", "bias", "num_batches_tracked"))
    tensors |= norm.state_dict(keep_vars=True)
    return {**tensors, "momentum": norm.momentum, "eps": norm.eps, "training": training}


class StockStem(NormAct2d):
    """BatchNorm, activation and max-pooling of stock layers, with the BatchNorm's state."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return F.max_pool2d(super().forward(x), 3, 2, 1)


def stem(training: bool = True) -> Op:
    """max_pool2d(relu(BatchNorm(x))) as a residual network begins."""

    def make(shape: Shape) -> Pair:
        return alike(StockStem(shape[1], act="relu"), fused_nn.BatchNormActMaxPool2d(shape[1], 3, 2, 1), training)

    def reference(model: Any, seed: int, x: Tensor) -> Tensor:
        windows = ([3, 3], [2, 2], [1, 1], [1, 1], False)
        state = norm_state(model, training)
        tensors = (state.pop(name) for name in ("running_mean", "running_var", "weight", "bias"))
        return eager.batch_norm_act_max_pool2d(x, *tensors, windows=windows, act="relu", **state)

    def halved(shape: Shape) -> Shape:
        return (*shape[:2], *((size + 1) // 2 for size in shape[2:]))

    return Op(
        "batch_norm_relu_max_pool" + "_eval" * (not training),
        make,
        reference,
        flips=True,
        training=training,
        output_shape=halved,
        forward_tensors=1,  # the results have a quarter of the input's size, and are not counted
        backward_tensors=2,
    )


class StockNormActDropout(NormAct2d):
    """Stock BatchNorm and activation, then stock dropout, for inputs of any rank."""

    def __init__(self, num_features: int, act: str, p: float) -> None:
        super().__init__(num_features, act=act)
        self.dropout = nn.Dropout(p)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return self.dropout(super().forward(x, residual))

    def _check_input_dim(self, input: Tensor) -> None:
        pass


def batch_norm_dropout(act: str, p: float = 0.5) -> Op:
    """dropout(activation(BatchNorm(x)))."""

    def make(shape: Shape) -> Pair:
        return alike(StockNormActDropout(shape[1], act, p), FUSED[len(shape)](shape[1], act=act, p=p))

    return Op(f"batch_norm_{act}_dropout", make, norm_reference(act, p=p), draws=True, flips=True)
