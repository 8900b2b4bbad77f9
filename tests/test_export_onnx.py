"""torch.export and ONNX in evaluation mode: only stock operators, and onnxruntime gives the model's output."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fuse_models import AcrossModules, NestedSequential, ResNet
from torch import nn

import fusedtricks
import fusedtricks.nn as ftnn

onnxruntime = pytest.importorskip("onnxruntime", reason="one of the test extras")
pytest.importorskip("onnxscript", reason="one of the test extras")


def own_modules() -> nn.Module:
    """A model written with our modules instead of fused."""
    return nn.Sequential(
        nn.Conv2d(4, 4, 3),
        ftnn.BatchNormAct2d(4, act="leaky_relu", act_kwargs={"negative_slope": 0.2}),
        ftnn.Dropout(0.5),
        ftnn.GELU(),
        ftnn.Softplus(2.0),
        ftnn.BatchNormReLU2d(4),
    )


MODELS = {
    "fused": lambda: fusedtricks.fuse(ResNet()),
    "fused-across-modules": lambda: fusedtricks.fuse(AcrossModules()),
    "fused-sequential": lambda: fusedtricks.fuse(NestedSequential()),
    "unfused": lambda: fusedtricks.unfuse(fusedtricks.fuse(ResNet())),
    "own-modules": own_modules,
}


def evaluated(name: str) -> nn.Module:
    """The model in evaluation mode, after a training step that changes its running statistics."""
    model = MODELS[name]()
    model(torch.randn(5, 4, 12, 10) + 1)
    return model.eval()


@pytest.mark.parametrize("name", MODELS)
def test_export_ends_in_stock_operators(name):
    model = evaluated(name)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(model, (torch.randn(3, 4, 12, 10),), dynamic_shapes=({0: batch},))
    operators = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert all(operator.startswith("aten.") for operator in operators), operators
    x = torch.randn(6, 4, 12, 10)
    torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.parametrize("name", MODELS)
def test_onnx(name, tmp_path: Path):
    model = evaluated(name)
    x = torch.randn(3, 4, 12, 10)
    file = str(tmp_path / "model.onnx")
    torch.onnx.export(model, (x,), dynamo=True, verbose=False).save(file)
    session = onnxruntime.InferenceSession(file)
    result = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(result), model(x).detach(), rtol=1e-4, atol=1e-5)


def test_torch_jit_trace():
    """Like older exporters: tracing a fused model records stock operators."""
    model = evaluated("fused")
    x = torch.randn(3, 4, 12, 10)
    traced = torch.jit.trace(model, x)
    assert not [node for node in traced.inlined_graph.nodes() if node.kind().startswith("fusedtricks")]
    torch.testing.assert_close(traced(x), model(x))


def every_module() -> nn.Module:
    """One module of each family."""
    return nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1),
        ftnn.BatchNormReLU2d(4, p=0.2),
        ftnn.Dropout2d(0.5),
        ftnn.ActDropout("gelu", 0.5),
        ftnn.StochasticDepth(nn.Sequential(ftnn.DropConnectConv2d(4, 4, 1), ftnn.Hardsigmoid()), 0.5),
        ftnn.BatchNormActMaxPool2d(4, 2, act="elu"),
        nn.Flatten(),
        ftnn.LinearActDropout(4 * 6 * 5, 8, act="mish"),
        ftnn.DropConnectLinear(8, 8, act="tanh"),
        ftnn.AlphaDropout(0.5),
        ftnn.DropPath(0.5),
    )


def kinds(traced: torch.jit.ScriptModule) -> set[str]:
    return {node.kind().split("::")[0] for node in traced.inlined_graph.nodes()}


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*deprecated:DeprecationWarning")
def test_a_trace_runs_without_this_package(training, tmp_path):
    """torch.jit.trace records stock's operators: another process needs torch alone."""
    model, x = every_module().train(training), torch.randn(3, 4, 12, 10)
    traced = torch.jit.trace(model, x, check_trace=False)
    assert kinds(traced) <= {"aten", "prim"}
    torch.jit.save(traced, tmp_path / "model.pt")
    torch.save(x, tmp_path / "x.pt")
    code = "import torch; torch.save(torch.jit.load('model.pt')(torch.load('x.pt')), 'y.pt')"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    y = torch.load(tmp_path / "y.pt")
    assert y.shape == (3, 8)
    if not training:
        torch.testing.assert_close(y, model(x))


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:UserWarning")
def test_legacy_onnx(tmp_path, capfd):
    """The exporter that traces."""
    model, x = every_module().eval(), torch.randn(3, 4, 12, 10)
    file = str(tmp_path / "model.onnx")
    torch.onnx.export(model, (x,), file, dynamo=False)
    session = onnxruntime.InferenceSession(file)
    result = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(result), model(x).detach(), rtol=1e-4, atol=1e-5)
