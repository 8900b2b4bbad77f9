"""The benchmarks: registry, runner, picture and networks. Nothing here looks at how long a thing takes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import fusedtricks

sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks import run
from benchmarks.cases import (
    CASES,
    MOBILENETV2_EXPANDED,
    MOBILENETV2_PROJECTED,
    NETWORKS,
    QUICK,
    RESNET50,
    select,
)
from benchmarks.models import DropoutMLP, MobileNetV2, ResNet50
from benchmarks.targets import TARGETS, target_cases
from fusedtricks.demo.layers import FUSED, STOCK

SCRIPTS = Path(run.__file__).parent
ROW_KEYS = {
    *("op", "case", "direction", "dtype", "layout", "shape", "threads", "device"),
    *("eager_ms", "fused_ms", "compile_ms", "copy_ms", "ratio_eager", "ratio_copy"),
}
IMAGE_NETWORKS = {"resnet50": (ResNet50, 25_557_032), "mobilenetv2": (MobileNetV2, 3_504_872)}


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors: more threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run_script(name: str, *arguments: object, cwd: Path) -> str:
    command = [sys.executable, str(SCRIPTS / name), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True).stdout


def norm_input_shapes(network: type[nn.Module]) -> list[tuple[int, ...]]:
    """The different (C, H, W) that the network's BatchNorm layers see, for images of 224 x 224, in order."""
    shapes: list[tuple[int, ...]] = []
    with torch.device("meta"):
        model = network(STOCK)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape[1:])))
        model(torch.empty(2, 3, 224, 224))
    return list(dict.fromkeys(shapes))


def test_registry_has_each_case_once_and_every_activation():
    ids = [case.id for case in CASES]
    assert len(set(ids)) == len(ids)
    ops = {case.op for case in CASES}
    assert set(fusedtricks.functional.ACTIVATIONS) - {"identity"} <= ops
    assert {"batch_norm_relu", "batch_norm_add_relu", "dropout", "leaky_relu_inplace", "end_to_end"} <= ops


def test_registry_takes_its_shapes_from_the_networks():
    assert sorted(norm_input_shapes(ResNet50)) == sorted(RESNET50)
    assert set(MOBILENETV2_EXPANDED + MOBILENETV2_PROJECTED) <= set(norm_input_shapes(MobileNetV2))


@pytest.mark.parametrize("pattern", QUICK)
def test_quick_patterns_match(pattern):
    assert select([pattern])


def test_patterns_are_substrings_or_wildcards():
    assert {case.name for case in select(["dropout/tiny"])} == {"tiny-64x128"}
    assert select(["*/tiny-64x128/*"]) == select(["/tiny-64x128/"])
    assert len(select(["tiny-64x128/"], quick=True)) < len(select(["tiny-64x128/"]))


def test_every_target_has_its_cases():
    cases = {(case.op, case.name, case.direction, case.dtype_name, case.layout) for case in target_cases()}
    for target in TARGETS:
        for name in target.cases:
            assert (target.op, name, target.direction, target.dtype, target.layout) in cases


def test_run_writes_rows_and_plot_draws_them(tmp_path):
    results, picture = tmp_path / "results.json", tmp_path / "results.png"
    options = ("--quick", "--only", "tiny", "--seconds", 0.01, "--threads", 1, "--json", results)
    table = run_script("run.py", *options, cwd=tmp_path)
    written = json.loads(results.read_text())

    assert {"cpu", "threads", "torch", "isa", "commit", "date"} <= set(written["machine"])
    assert len(written["rows"]) == len(select(["tiny"], quick=True))
    for row in written["rows"]:
        assert set(row) >= ROW_KEYS
        assert row["threads"] == 1 and row["shape"] == [64, 128] and row["compile_ms"] is None
        assert min(row["eager_ms"], row["fused_ms"], row["copy_ms"], row["ratio_eager"], row["ratio_copy"]) > 0
        assert row["op"] in table
    assert f"{len(written['rows'])} cases timed" in table

    run_script("plot.py", results, picture, cwd=tmp_path)
    assert picture.read_bytes().startswith(b"\x89PNG")


def run_cases(tmp_path: Path, *patterns: str) -> tuple[int, dict]:
    """The exit status and what was written."""
    results = tmp_path / "results.json"
    options = [option for pattern in patterns for option in ("--only", pattern)]
    status = run.main([*options, "--seconds", "0", "--json", str(results)])
    return status, json.loads(results.read_text())


def test_fused_batch_norm_keeps_less_for_backward(tmp_path):
    status, written = run_cases(tmp_path, "batch_norm_relu/tiny*/forward/float32/*")
    (row,) = written["rows"]
    assert status == 0
    assert row["kept_bytes_fused"] < 0.6 * row["kept_bytes_eager"]


def test_wrong_values_are_not_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(fusedtricks.functional, "selu", lambda x: x * 1.01)
    status, written = run_cases(tmp_path, "selu/tiny", "silu/tiny*/float32/*")
    assert status == 1
    assert {row["op"] for row in written["rows"]} == {"silu"}
    assert written["wrong"].keys() == {case.id for case in select(["selu/tiny"])}


def test_no_case_is_an_error(capsys):
    assert run.main(["--only", "no such case"]) == 2


@pytest.mark.parametrize("name", IMAGE_NETWORKS)
def test_networks_are_the_standard_ones(name):
    network, parameters = IMAGE_NETWORKS[name]
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in network(STOCK).parameters()) == parameters


SMALL_NETWORKS = {
    "resnet50": (lambda layers: ResNet50(layers, classes=10), (4, 3, 64, 64)),
    "mobilenetv2": (lambda layers: MobileNetV2(layers, classes=10, dropout=0.0), (4, 3, 64, 64)),
    "mlp": (lambda layers: DropoutMLP(layers, width=32, dropout=0.0), (4, 32)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_fused_layers_compute_what_those_of_stock_layers_do(name):
    make, shape = SMALL_NETWORKS[name]
    torch.manual_seed(0)
    stock, fused = (make(layers).double() for layers in (STOCK, FUSED))
    assert list(stock.state_dict()) == list(fused.state_dict())
    fused.load_state_dict(stock.state_dict())
    x = torch.randn(shape, dtype=torch.float64)

    outputs = [network(x) for network in (stock, fused)]
    torch.testing.assert_close(outputs[1], outputs[0])
    gradients = [
        torch.autograd.grad(output.square().sum(), list(network.parameters()))
        for output, network in zip(outputs, (stock, fused), strict=True)
    ]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fused.state_dict(), stock.state_dict())
    torch.testing.assert_close(fused.eval()(x), stock.eval()(x))
