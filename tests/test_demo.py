"""The demo: it agrees, says so, draws, and fails when the fused layers are wrong."""

import importlib.util

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusedtricks import demo
from fusedtricks.nn import BatchNormAct2d

SHORT = ["--epochs", "1", "--images", "96", "--batch-size", "32", "--double-steps", "2"]


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors: more threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "options", [[], ["--channels-last", "--dropout", "0.3"]], ids=["plain", "channels_last-dropout"]
)
def test_demo_agrees_and_draws(options, tmp_path, capsys):
    picture = tmp_path / "curves.png"
    assert demo.main([*SHORT, *options, "--out", str(picture)]) == 0
    printed = capsys.readouterr().out
    assert "DIVERGE" not in printed and "kept for backward" in printed and "training step" in printed
    assert picture.read_bytes().startswith(b"\x89PNG")


def leaky(layer: BatchNormAct2d, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """The layer with another activation."""
    y = nn.BatchNorm2d.forward(layer, x)
    return F.leaky_relu(y if residual is None else y + residual, 0.01)


def coarse_float32(layer: BatchNormAct2d, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """The layer, but wrong by two hundredths in float32 alone."""
    y = FORWARD(layer, x, residual)
    return y * 1.02 if x.dtype == torch.float32 else y


FORWARD = BatchNormAct2d.forward


@pytest.mark.parametrize("wrong", [leaky, coarse_float32])
def test_demo_fails_where_the_layers_are_wrong(wrong, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(BatchNormAct2d, "forward", wrong)
    assert demo.main([*SHORT, "--out", str(tmp_path / "curves.png")]) == 1
    assert "DIVERGE" in capsys.readouterr().out


def test_demo_names_the_missing_extra(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert demo.main([]) == 2
    assert 'pip install "fusedtricks[demo]"' in capsys.readouterr().err
