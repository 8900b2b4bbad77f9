"""The activations alone: stock's functions, ours, and the reference."""

from functools import partial
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from fusedtricks import eager
from fusedtricks import functional as fused_functional

from .check import Function, Reference
from .op import Op, Pair, Shape


def activation(name: str, inplace: bool = False) -> Op:
    """The activation as the function of that name in `torch.nn.functional` and in ours, where there is one."""

    def make(shape: Shape) -> Pair:
        stock = _function(F, name) or eager.FORMULAS[name]
        fused = _function(fused_functional, name) or partial(fused_functional.activation, act=name)
        return (partial(stock, inplace=True), partial(fused, inplace=True)) if inplace else (stock, fused)

    return Op(f"{name}_inplace" if inplace else name, make, activation_reference(name), inplace=inplace)


def activation_reference(name: str) -> Reference:
    """`eager.activation` of that name."""

    def reference(model: Any, seed: int, x: Tensor) -> Tensor:
        return eager.activation(x, name)

    return reference


def _function(module: Any, name: str) -> Function | None:
    return partial(module.gelu, approximate="tanh") if name == "gelu_tanh" else getattr(module, name, None)
