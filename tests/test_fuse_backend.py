"""torch.compile(model, backend="fusedtricks"): Dynamo's graph has the chains that fuse finds."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from fuse_case import STEPS, image, train
from fuse_models import CASES, ResNet
from torch import Tensor, nn

from fusedtricks.fusing import dynamo

SCRIPT = """
import torch
model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU())
torch.compile(model, backend="fusedtricks")(torch.randn(2, 3, 8, 8)).sum().backward()
import sys
print("fusedtricks" in sys.modules)
"""
# Exceptions: Dynamo compiles one mode at a time; a cumulative average reads its count, which splits Dynamo's graph in
# two; modules without a function in torch, such as stochastic depth, appear in Dynamo's graph as their operations.
CHAINS = {name: case.chains for name, case in CASES.items()} | {"ByMode": 1, "Untracked": 1, "Paths": 1}


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The chains of each graph that was compiled."""
    chains: list[list[str]] = []
    rewrite = dynamo.rewrite

    def spy(*args: Any) -> Any:
        result = rewrite(*args)
        chains.append(result.chains)
        return result

    monkeypatch.setattr(dynamo, "rewrite", spy)
    return chains


def test_by_name_alone():
    """The package's entry point registers the backend."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"]


@pytest.mark.parametrize("name", CASES)
def test_models(name, found):
    """Three training steps, evaluation, and no_grad, compared with stock; the same chains as in fuse."""
    stock = CASES[name].make().double()
    twin = copy.deepcopy(stock)
    compiled = torch.compile(twin, backend="fusedtricks")
    inputs = [image() for _ in range(STEPS)]
    actual = train(compiled, inputs)
    torch.testing.assert_close(actual, train(stock, inputs), rtol=1e-9, atol=1e-9)
    assert len(found[0]) == CHAINS[name], found


def test_shapes_may_change(found):
    stock = ResNet().double()
    compiled = torch.compile(copy.deepcopy(stock), backend="fusedtricks", dynamic=True)
    for size in ((3, 4, 8, 8), (5, 4, 8, 8), (2, 4, 11, 9), (7, 4, 16, 10)):
        x = image(*size)
        torch.testing.assert_close(compiled(x), stock(x))
    assert len(found) < 4  # how many shapes share a graph depends on the torch version


def test_graph_breaks_are_tolerated(found):
    class Breaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn1, self.bn2, self.act = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            y = self.act(self.bn1(x))
            torch._dynamo.graph_break()
            return self.act(self.bn2(y) + x)

    stock = Breaks().double()
    compiled = torch.compile(copy.deepcopy(stock), backend="fusedtricks")
    x = image()
    torch.testing.assert_close(compiled(x), stock(x))
    assert found == [["batch_norm → relu"], ["batch_norm + residual → relu"]]


def test_training_is_guarded(found):
    stock = ResNet().double()
    twin = copy.deepcopy(stock)
    compiled = torch.compile(twin, backend="fusedtricks")
    x = image()
    for mode in (True, False, True):
        torch.testing.assert_close(compiled.train(mode)(x), stock.train(mode)(x))
        torch.testing.assert_close(dict(twin.state_dict()), dict(stock.state_dict()))
    stock.layers[0].bn1.eval()
    twin.layers[0].bn1.eval()
    torch.testing.assert_close(compiled(x), stock(x))
    torch.testing.assert_close(dict(twin.state_dict()), dict(stock.state_dict()))


def test_the_kernels_run(calls):
    torch.compile(ResNet(), backend="fusedtricks")(torch.randn(2, 4, 8, 8))
    assert calls == ["relu pooled", "relu", "+ relu", "relu", "identity", "+ relu"]
