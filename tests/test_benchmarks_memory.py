"""benchmarks/memory.py: its networks, its bytes, its check, its rows."""

import json
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks import (
    memory,
    memory_sides,
    plain_networks,
)
from benchmarks.live_bytes import kept_by, live_bytes
from benchmarks.memory_floor import floor_bytes


@pytest.fixture(autouse=True)
def one_thread():
    """The tensors are small: more threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


PLAIN_PARAMETERS = {
    "vgg16-bn": 138_365_992,
    "resnet50": 25_557_032,
    "mobilenet-v2": 3_504_872,
    "mobilenet-v2-silu": 3_504_872,
    "densenet121": 7_978_856,
    "unet": 31_037_698,
}


@pytest.mark.parametrize("name", PLAIN_PARAMETERS)
def test_plain_networks_have_the_standard_parameters(name):
    with torch.device("meta"):
        network = memory.NETWORKS[name].make()
    assert sum(parameter.numel() for parameter in network.parameters()) == PLAIN_PARAMETERS[name]


def test_live_bytes_are_those_of_the_tensors():
    x = torch.randn(1000, requires_grad=True)
    assert kept_by(lambda: x.exp()) == 0  # keeps its result alone
    assert kept_by(lambda: x.sin()) == 0  # keeps its input, which was there
    assert kept_by(lambda: x.sin().exp().sin()) == x.nbytes  # the exponential, for two
    live = live_bytes(lambda: x.detach().exp().sin())
    assert (live.at_end, live.peak) == (x.nbytes, 2 * x.nbytes)


def test_the_floor_of_memory_is_one_tensor_for_each_convolution():
    nbytes = 4 * 3 * 8 * 5 * 5
    assert floor_bytes(partial(plain_networks.FourLayers, 8), (3, 8, 5, 5)) == 4 * nbytes
    last = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1))
    assert floor_bytes(lambda: last.to("meta"), (3, 8, 5, 5)) == nbytes


def run_memory(tmp_path: Path, *options: str) -> tuple[int, dict]:
    """Returns the exit status and the written results, of small networks."""
    results = tmp_path / "memory.json"
    status = memory.main(["--small", "--output", str(results), *options])
    return status, json.loads(results.read_text())


@pytest.mark.parametrize("name", ["resnet50", "unet"])
def test_memory_of_a_network(name, tmp_path):
    status, written = run_memory(tmp_path, "--no-time", "--networks", name)
    assert status == 0 and not written["wrong"]
    for layout in memory.SMALL[name].layouts:
        rows = {row["side"]: row for row in written["rows"] if row["layout"] == layout}
        assert list(rows)[:3] == ["stock", "fused", "recompute"] and "checkpoint" in rows
        kept = {side: row["kept_bytes"] for side, row in rows.items()}
        assert rows["stock"]["floor_bytes"] <= kept["recompute"] < kept["fused"] and "step_ms" not in rows["stock"]
        assert all(row["peak_bytes"] >= row["kept_bytes"] for row in rows.values())
        if memory.SMALL[name].depths:
            assert kept["recompute, depth None"] <= kept["recompute"] <= kept["recompute, depth 0"]


def test_memory_run_times_its_sides_in_turns(tmp_path):
    status, written = run_memory(tmp_path, "--networks", "four-layers-14", "--seconds", "0")
    assert status == 0
    for row in written["rows"]:
        assert row["rounds"] == memory.MIN_ROUNDS and row["step_ms"] > 0
        assert row["time_ratio"] == 1 or row["side"] != "stock"


def test_a_side_with_other_bits_is_not_measured(tmp_path, monkeypatch, capsys):
    fused = memory_sides._fused

    def wrong(stock: nn.Module, **settings: object) -> nn.Module:
        network = fused(stock, **settings)
        if settings:
            network.register_forward_hook(lambda module, inputs, output: output * (1 + 2**-20))
        return network

    monkeypatch.setattr(memory_sides, "_fused", wrong)
    status, written = run_memory(tmp_path, "--no-time", "--networks", "unet")
    assert status == 1 and list(written["wrong"]) == ["unet/contiguous/recompute"]
    (row,) = (row for row in written["rows"] if row["wrong"])
    assert row["side"] == "recompute" and "kept_bytes" not in row
    assert "WRONG, not measured: not the bits of fused" in capsys.readouterr().out


@pytest.mark.slow
def test_memory_of_compiled_sides(tmp_path):
    status, written = run_memory(tmp_path, "--no-time", "--compile", "--networks", "four-layers-14")
    assert status == 0
    rows = {row["side"]: row for row in written["rows"] if row["layout"] == "contiguous"}
    assert rows["compiled, budget 0.5"]["kept_bytes"] < rows["compiled"]["kept_bytes"]
