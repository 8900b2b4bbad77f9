"""Under autocast on the CPU, results and gradients have the dtypes of stock's: every op follows torch's lists."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from twins import LENGTH, TWINS, Outcome, Twin, outcome, values

import fusedtricks.functional as ftF
import fusedtricks.nn as ftnn
from fusedtricks import _C
from fusedtricks.functional import ACTIVATIONS

INPUTS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
CASTS = {"off": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
EXTRA: dict[str, Twin] = {
    "sync_batch_norm": Twin(
        lambda: ftnn.SyncBatchNormAct(LENGTH).eval(),
        lambda: nn.Sequential(nn.SyncBatchNorm(LENGTH), nn.ReLU()).eval(),
        4,
    ),
    "BatchNormAct2d with a residual": Twin(
        lambda: WithResidual(ftnn.BatchNormAct2d(LENGTH), ftnn.BatchNormAct2d.forward),
        lambda: WithResidual(nn.BatchNorm2d(LENGTH), lambda norm, x, residual: (norm(x) + residual).relu()),
        4,
    ),
    "LinearActDropout with a residual": Twin(
        lambda: WithResidual(ftnn.LinearActDropout(LENGTH, LENGTH, p=0.0), ftnn.LinearActDropout.forward),
        lambda: WithResidual(nn.Linear(LENGTH, LENGTH), lambda linear, x, residual: linear(x).relu() + residual),
        2,
    ),
    "ActDropout with a residual": Twin(
        lambda: WithResidual(ftnn.ActDropout(p=0.0), ftnn.ActDropout.forward),
        lambda: WithResidual(nn.ReLU(), lambda act, x, residual: act(x) + residual),
        2,
    ),
    "DropPath with a residual": Twin(
        lambda: WithResidual(ftnn.DropPath(0.0), ftnn.DropPath.forward),
        lambda: WithResidual(nn.Identity(), lambda act, x, residual: act(x) + residual),
        2,
    ),
    "DropConnectLinear, mean of an activation": Twin(
        lambda: ftnn.DropConnectLinear(LENGTH, 3, p=0.0, act="silu"),
        lambda: nn.Sequential(nn.Linear(LENGTH, 3), nn.SiLU()),
        2,
    ),
    "select_samples": Twin(
        lambda: Applied(lambda x: ftF.select_samples(x, torch.tensor([1, 0]))),
        lambda: Applied(lambda x: x.index_select(0, torch.tensor([1, 0]))),
        2,
    ),
    "add_samples": Twin(
        lambda: Applied(lambda x: ftF.add_samples(x, x[:2], torch.tensor([1, 0]))),
        lambda: Applied(lambda x: x.index_add(0, torch.tensor([1, 0]), x[:2])),
        2,
    ),
}


class WithResidual(nn.Module):
    """A layer whose residual is its input."""

    def __init__(self, layer: nn.Module, call: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.call = layer, call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.layer, x, x)


class Applied(nn.Module):
    """A function of the input."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def dtypes(found: Outcome) -> dict[str, Any]:
    """The dtypes of results, gradients and state, or where an error was raised."""
    errors = {name: value for name, value in found.items() if name.startswith("error")}
    facts = {name: value["dtype"] for name, value in found.items() if isinstance(value, dict)}
    return errors or facts


def cast(layer: Any, dtype: torch.dtype) -> None:
    if isinstance(layer, nn.Module):
        layer.to(dtype)


def results(twin: Twin, input: torch.dtype, autocast: torch.dtype | None, whole: bool) -> list[dict[str, Any]]:
    """Of ours and of stock."""

    def make_input() -> Tensor:
        return values((LENGTH,) * twin.rank).to(input).requires_grad_()

    def setting(name: str) -> Any:
        value = twin.given[name]
        if not isinstance(value, Tensor):
            return value
        return value.to(input) if whole or name == "_random_samples" else value.clone()

    found = []
    for build in (twin.fused, twin.stock):
        with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
            found.append(
                dtypes(
                    outcome(
                        lambda build=build: build(**{name: setting(name) for name in twin.given}),
                        make_input,
                        False,
                        lambda layer: cast(layer, input) if whole else None,
                    )
                )
            )
    return found


@pytest.mark.parametrize("whole", [False, True], ids=["float32 parameters", "parameters as the input"])
@pytest.mark.parametrize("autocast", CASTS)
@pytest.mark.parametrize("name", [*TWINS, *EXTRA])
def test_dtypes(name, autocast, whole):
    twin = TWINS.get(name) or EXTRA[name]
    different = {}
    for dtype in INPUTS:
        ours, stock = results(twin, dtype, CASTS[autocast], whole)
        if ours != stock:
            different[str(dtype)] = {
                k: (ours.get(k), stock.get(k)) for k in {**ours, **stock} if ours.get(k) != stock.get(k)
            }
    assert different == {}, "(ours, stock)"


def _listed(macro: str) -> set[str]:
    """The functions of one of torch's autocast lists for CUDA, as its headers have it."""
    header = (Path(torch.__file__).parent / "include" / "ATen" / "autocast_mode.h").read_text()
    found = re.search(rf"#define {macro}\(_\)(.*?[^\\])\n", header, re.DOTALL)
    assert found is not None
    return set(re.findall(r"_\((\w+)", found[1]))


def test_cuda_by_table():
    """Without a GPU: what an operator is computed in follows the list for what it is composed of."""
    in_float32, in_half = _listed("AT_FORALL_FP32"), _listed("AT_FORALL_LOWER_PRECISION_FP")
    assert "exp" in in_float32 and "conv2d" in in_half
    names = {"gelu_tanh": "gelu"}
    for act in ACTIVATIONS:
        stock = names.get(act, act)
        assert stock not in in_half
        assert _C.autocasts_to_float32(act, "cuda") == (stock in in_float32), act
        assert not _C.autocasts_to_float32(act, "cpu")
    others = {"batch_norm", "native_batch_norm", "dropout", "native_dropout", "max_pool2d", "feature_dropout"}
    pools = {"fractional_max_pool2d", "fractional_max_pool3d"}
    assert not (others | pools) & (in_float32 | in_half)
    assert not _C.autocasts_to_float32("fractional_max_pool", "cuda")
    assert _C.autocasts_to_float32("fractional_max_pool", "cpu")
