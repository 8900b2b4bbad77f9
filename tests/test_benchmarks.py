"""The benchmarks: registry, runner, plots and networks. No test here measures time."""

import ast
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fusedtricks
from fusedtricks import eager

sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks import (
    check,
    compare,
    cuda_cases,
    cuda_targets,
    overhead,
    run,
    smoke,
)
from benchmarks.cases import CASES, QUICK, select
from benchmarks.check import Arguments, Mismatch
from benchmarks.cuda_cases import RESNET50_LAYERS, layer_counts
from benchmarks.devices import BACKENDS
from benchmarks.end_to_end import Family
from benchmarks.measure import Side, measure
from benchmarks.models import DropoutMLP, MobileNetV2, ResNet50
from benchmarks.networks import FAMILIES, NETWORKS
from benchmarks.shapes import MOBILENETV2_EXPANDED, MOBILENETV2_PROJECTED, RESNET50
from benchmarks.targets import TARGETS, Target, target_cases, target_table
from fusedtricks.stock import FUSED, STOCK

SCRIPTS = Path(run.__file__).parent
ROW_KEYS = {
    *("op", "case", "direction", "dtype", "layout", "shape", "threads", "device"),
    *("eager_ms", "fused_ms", "compile_ms", "copy_ms", "ratio_eager", "ratio_copy"),
}
IMAGE_NETWORKS = {"resnet50": (ResNet50, 25_557_032), "mobilenetv2": (MobileNetV2, 3_504_872)}


@pytest.fixture(autouse=True)
def one_thread():
    """The tensors are small: more threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run_script(name: str, *arguments: object, cwd: Path) -> str:
    command = [sys.executable, str(SCRIPTS / name), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True).stdout


def norm_input_shapes(network: type[nn.Module]) -> list[tuple[int, ...]]:
    """The distinct input shapes (C, H, W) of the network's BatchNorm layers for 224 x 224 images, in order."""
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
    assert {"batch_norm_relu", "batch_norm_add_relu", "dropout", "leaky_relu_inplace", "end_to_end", "fuse"} <= ops


def test_a_family_is_fused_and_its_chains_counted():
    stock, fused, facts = Family(lambda: nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.5)), 3).pair()
    assert facts == {"chains": 1}
    assert fused.training and not any(a is b for a, b in zip(stock.modules(), fused.modules(), strict=True))


@pytest.mark.parametrize(("name", "chains"), [("resnet50", 49), ("mobilenet-v2", 45)])
def test_chains_of_the_families(name, chains):
    """Every BatchNorm that something follows: all but the 4 of the shortcuts in ResNet-50, all but 7 in MobileNetV2."""
    assert FAMILIES[name][0].pair()[2] == {"chains": chains}


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
    """Returns the exit status and the written results."""
    results = tmp_path / "results.json"
    options = [option for pattern in patterns for option in ("--only", pattern)]
    status = run.main([*options, "--seconds", "0", "--json", str(results)])
    return status, json.loads(results.read_text())


def test_fused_batch_norm_keeps_less_for_backward(tmp_path):
    status, written = run_cases(tmp_path, "batch_norm_relu/tiny*/forward/float32/*")
    (row,) = written["rows"]
    assert status == 0
    assert row["kept_bytes_fused"] < 0.6 * row["kept_bytes_eager"]


def imports(path: Path) -> set[str]:
    """The modules that a file imports, for example "benchmarks.case", including imports for type checkers."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = ".".join(filter(None, ["benchmarks" * bool(node.level), node.module]))
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


def test_benchmarks_import_neither_the_demo_nor_each_other_in_a_circle():
    imported = {f"benchmarks.{path.stem}": imports(path) for path in SCRIPTS.glob("*.py")}
    assert not [name for names in imported.values() for name in names if name.startswith("fusedtricks.demo")]
    left = {module: names & imported.keys() for module, names in imported.items()}
    while leaves := [module for module, names in left.items() if not names & left.keys()]:
        for module in leaves:
            del left[module]
    assert not left


SMALL = {2: (6, 64), 3: (4, 64, 64), 4: (4, 64, 9, 9), 5: (2, 4, 9, 9, 9)}
"""The maximum lengths of a shrunken case, by its number of dimensions."""


def made_small(case):
    lengths = zip(case.shape, SMALL[len(case.shape)], strict=True)
    return replace(case, shape=tuple(min(length) for length in lengths))


def op_cases(**wanted):
    """One case per op, direction, dtype and layout that matches `wanted`, without networks and compiled ops."""
    cases = {
        (case.op, case.op == overhead.OP and case.name, len(case.shape), case.direction, case.dtype, case.layout): case
        for case in CASES
        if case.op not in ("end_to_end", "fuse") and not case.op.startswith("inductor")
        if all(getattr(case, name) == value for name, value in wanted.items())
    }
    return list(cases.values())


def test_every_op_passes_the_check_when_it_is_made_small():
    cases = op_cases()
    assert len({case.op for case in cases}) >= 33
    for case in cases:
        small = made_small(case)
        small.build(small).check()


def drawing_cases():
    wanted = {"direction": "forward+backward", "dtype": torch.float32, "layout": "contiguous"}
    return [case for case in op_cases(**wanted) if case.build.args[0].draws]


def test_the_ops_that_draw_random_numbers_are_known():
    ops = {case.op for case in drawing_cases()} - {overhead.OP}
    assert ops == {
        *("alpha_dropout", "batch_norm_relu_dropout", "drop_connect", "drop_path_add", "dropout", "dropout2d"),
        *("fractional_max_pool2d_relu", "fractional_max_pool3d_relu", "gelu_dropout_bias", "relu_dropout_bias"),
        "stochastic_depth_skip",
    }


@pytest.mark.parametrize("case", drawing_cases(), ids=lambda case: f"{case.op}-{case.name}")
def test_the_check_sees_another_mask_than_that_of_the_seed(case, monkeypatch):
    def other_state(device):
        return drawn_seed(device) + 1

    drawn_seed = check.drawn_seed
    monkeypatch.setattr(check, "drawn_seed", other_state)
    if case.op == "stochastic_depth_skip":  # draws its samples from torch's generator; takes no seed
        add = eager.add_samples
        monkeypatch.setattr(eager, "add_samples", lambda x, rows, *others: add(x, rows.flip(0), *others))
    small = made_small(case)
    with pytest.raises(Mismatch):
        small.build(small).check()


class Scaled(torch.autograd.Function):
    """Multiplies by different factors in forward and backward."""

    @staticmethod
    def forward(ctx, x, factor, backward_factor):
        ctx.backward_factor = backward_factor
        return x * factor

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * ctx.backward_factor, None, None


WRONG = {
    "values": lambda y: Scaled.apply(y, 1.01, 1.0),
    "gradient": lambda y: Scaled.apply(y, 1.0, 1.01),
    "not a number": lambda y: Scaled.apply(y, float("nan"), 1.0),
    "strides": lambda y: y.mT.contiguous().mT,
    "dtype": lambda y: y.double(),
    "shape": lambda y: y[:1],
}


@pytest.mark.parametrize("wrong", WRONG)
def test_the_check_sees_what_is_wrong(wrong):
    """For each property of an op's results: values, gradient, strides, dtype and shape."""
    x, grad_output = torch.randn(4, 3, 5, 7), torch.randn(4, 3, 5, 7)
    arguments = Arguments([x], grad_output=grad_output if wrong != "shape" else None)

    def checked(function):
        check.check(function, lambda model, seed, x: x.sin(), arguments, torch.contiguous_format)

    checked(torch.sin)
    with pytest.raises(Mismatch, match={"values": "output", "gradient": "gradient of input 0"}.get(wrong)):
        checked(lambda x: WRONG[wrong](torch.sin(x)))


def test_the_check_sees_buffers_and_gradients_of_parameters():
    def update(x: Tensor, weight: Tensor, buffer: Tensor, factor: float = 1.0, share: float = 1.0) -> Tensor:
        buffer.add_(share * x.detach().mean(0))
        return x * Scaled.apply(weight, 1.0, factor)

    arguments = Arguments([torch.randn(4, 3)], [torch.randn(3)], [torch.ones(3)], torch.randn(4, 3))

    def checked(**wrong: float) -> None:
        def reference(model, seed, *tensors):
            return update(*tensors)

        check.check(partial(update, **wrong), reference, arguments, torch.contiguous_format)

    checked()
    with pytest.raises(Mismatch, match="gradient of parameter 0"):
        checked(factor=1.01)
    with pytest.raises(Mismatch, match="buffer 0"):
        checked(share=1.1)


def test_the_check_sees_a_stock_side_that_computes_something_else():
    arguments = Arguments([torch.randn(4, 3)])

    def checked(stock):
        check.check(torch.sin, lambda model, seed, x: x.sin(), arguments, torch.contiguous_format, stock=stock)

    checked(torch.sin)
    with pytest.raises(Mismatch, match="stock"):
        checked(torch.cos)


def test_smoke_says_what_is_wrong(monkeypatch, capsys):
    monkeypatch.setattr(smoke, "SHAPES", ((3, 7, 9, 9), (5, 100)))
    assert smoke.main(["--device", "cpu"]) == 0
    monkeypatch.setattr(fusedtricks.functional, "gelu", lambda x: 1.1 * torch.nn.functional.gelu(x))
    assert smoke.main(["--device", "cpu"]) == 1
    assert "WRONG gelu (5, 100), torch.float64" in capsys.readouterr().out


def test_overhead_cases_are_chosen_by_their_pattern_and_run_on_one_thread(monkeypatch, tmp_path):
    assert {case.op for case in select(["overhead/*"])} == {overhead.OP}
    acts = set(fusedtricks.functional.ACTIVATIONS) - {"identity"}
    others = {"batch_norm_relu", "batch_norm_add_relu", "functional.batch_norm_act", "fuse.batch_norm_relu"}
    assert {op.name for op in overhead.OPS} == acts | others | {"dropout", "act_dropout"}
    monkeypatch.setattr(overhead, "MIN_ROUNDS", 3)
    torch.set_num_threads(2)
    status, written = run_cases(tmp_path, "overhead/batch_norm_relu/*")
    assert status == 0 and torch.get_num_threads() == 2
    assert [row["threads"] for row in written["rows"]] == [1, 1]


def test_overhead_goals_are_shares_of_the_time_of_stock():
    shares = {(t.cases[0], t.direction): t.share for t in TARGETS if t.op == overhead.OP}
    assert shares["batch_norm_relu", "forward"] == 0.45 and shares["batch_norm_relu", "forward+backward"] == 0.6
    target = Target(overhead.OP, ("relu",), "forward", "float32", "contiguous", share=0.5)
    assert target.ratio == 2.0
    row = {"op": overhead.OP, "case": "relu", "direction": "forward", "dtype": "float32", "layout": "contiguous"}
    for ratio, met in ((0.91, "yes"), (0.90, "NO")):
        table = target_table([row | {"ratio_eager": ratio, "ratio_copy": None}])
        assert list(table.columns[-1].cells) == [met]
        assert list(table.columns[6].cells) == ["≤ 1.1 of the time"]


def test_wrong_values_are_not_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(fusedtricks.functional, "selu", lambda x: x * 1.01)
    status, written = run_cases(tmp_path, "selu/tiny", "silu/tiny*/float32/*")
    assert status == 1
    assert {row["op"] for row in written["rows"]} == {"silu"}
    assert written["wrong"].keys() == {case.id for case in select(["selu/tiny"])}


WRONG_FORMS = {
    "alpha_dropout": ("alpha_dropout", lambda function: lambda x, **options: 1.01 * function(x, **options)),
    "drop_path": ("drop_path_add", lambda function: lambda x, p, residual: function(x, p, 1.01 * residual)),
    "dropout": ("dropout/mlp-256", lambda function: lambda x: 1.01 * function(x)),
    "dropout2d": ("dropout2d/*512x7x7", lambda function: lambda x, p: function(x, p / 2)),
}


@pytest.mark.parametrize("name", WRONG_FORMS)
def test_dropout_with_wrong_values_is_not_timed(name, tmp_path, monkeypatch):
    op, wrong_form = WRONG_FORMS[name]
    monkeypatch.setattr(fusedtricks.functional, name, wrong_form(getattr(fusedtricks.functional, name)))
    pattern = f"{op}*/forward/float32/contiguous"
    status, written = run_cases(tmp_path, pattern)
    assert status == 1 and written["rows"] == []
    assert written["wrong"].keys() == {case.id for case in select([pattern])}


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


def test_cuda_registry_has_each_case_once_and_the_cases_of_every_goal():
    cases = BACKENDS["cuda"].cases
    assert len({case.id for case in cases}) == len(cases)
    assert {case.device for case in cases} == {"cuda"} and {case.device for case in CASES} == {"cpu"}
    chosen = {(case.op, case.name, case.direction) for case in cuda_targets.target_cases()}
    assert {(op, name, "forward+backward") for op, name in layer_counts()} <= chosen
    assert {"dropout", "leaky_relu", "end_to_end"} <= {op for op, _, _ in chosen}
    for pattern in cuda_cases.QUICK:
        assert select([pattern], cases=cases)


def test_layers_of_resnet50_are_those_of_the_network():
    layers: Counter[tuple[str, tuple[int, ...]]] = Counter()

    def count(module, inputs):
        names = ["batch_norm", *["add"] * (len(inputs) == 2), *["relu"] * (module.act is not None)]
        layers["_".join(names), tuple(inputs[0].shape[1:])] += 1

    with torch.device("meta"):
        model = ResNet50(STOCK)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_pre_hook(count)
        model(torch.empty(2, 3, 224, 224))
    assert layers == {(op, shape): n for op, shapes in RESNET50_LAYERS.items() for shape, n in shapes.items()}
    assert sum(layer_counts().values()) == 53


@pytest.mark.parametrize("op", sorted({case.op for case in BACKENDS["cuda"].cases} - {"end_to_end"}))
def test_cuda_cases_build_and_pass_their_check_when_made_small_and_moved(op):
    case = next(case for case in reversed(BACKENDS["cuda"].cases) if case.op == op)
    small = replace(case, shape=(3, 5, 7, 7)[: len(case.shape)], device="cpu")
    workload = small.build(small)
    workload.check()
    assert workload.bytes_at_rest() == 0


def cuda_row(op: str, name: str, direction: str, **changes: object) -> dict:
    """A result row as from a GPU, with a copy time of 2 ms, so that T is 1 ms."""
    case = next(c for c in BACKENDS["cuda"].cases if (c.op, c.name, c.direction) == (op, name, direction))
    row = {"op": op, "case": name, "direction": direction, "dtype": case.dtype_name, "layout": case.layout}
    times = {"eager_ms": 0.4, "fused_ms": 0.2, "copy_ms": 2.0, "ratio_eager": 2.0, "ratio_compile": 1.2}
    return row | times | {"shape": list(case.shape), "l2_bytes": 60e6, "path": "auto", "device": "cuda"} | changes


@pytest.mark.parametrize(
    ("name", "path", "forward", "backward"),
    [
        ("resnet50-256x64x56x56", "auto", 3.45, 5.75),
        ("resnet50-256x512x28x28", "auto", 2.4, 3.75),
        ("resnet50-256x512x28x28", "two", 3.45, 5.75),
        ("resnet50-256x256x14x14", "hold", 2.603, 3.75),
        ("resnet50-256x256x14x14", "two", None, None),
    ],
)
def test_cuda_goals_in_tensors_moved(name, path, forward, backward):
    """For slabs that fit on chip and slabs that do not, with and without the switch."""
    for measured, met in ((0.999, True), (1.001, False)):
        ms = (forward or 1) * measured
        rows = [
            cuda_row("batch_norm_relu", name, "forward", path=path, fused_ms=ms),
            cuda_row("batch_norm_relu", name, "forward+backward", path=path, fused_ms=ms + (backward or 1) * measured),
        ]
        found = [v.met for v in cuda_targets.verdicts(rows) if v.what.startswith("batch_norm_relu,")]
        assert found == ([met, met] if forward else [])


def test_cuda_goals_of_all_layers_and_of_networks():
    rows = [cuda_row(op, name, "forward+backward", fused_ms=11.9 / 53) for op, name in layer_counts()]
    rows.append(cuda_row("end_to_end", "resnet50", "training step", ratio_eager=1.1))
    verdicts = [v for v in cuda_targets.verdicts(rows) if not v.what.startswith("batch_norm_relu,")]
    assert [(v.measured.split(",")[0], v.met) for v in verdicts] == [
        *(("11.90 ms", True), ("2.00", True), ("1.20", True)),
        *(("1.10", False), ("1.20", True)),
    ]
    rows[0] |= {"fused_ms": 1.0, "ratio_eager": 1.0, "ratio_compile": 0.9}
    assert not any(v.met for v in cuda_targets.verdicts(rows) if "53" in v.case or "16" in v.case)
    assert not any(v.met for v in cuda_targets.verdicts(rows[1:-1]) if "53" in v.case or "16" in v.case)
    cuda_targets.target_table(rows)


def test_cuda_goals_of_elementwise_ops_are_for_tensors_larger_than_the_cache():
    row = cuda_row("dropout", "resnet50-256x64x56x56", "forward", fused_ms=2.3)
    (contiguous,) = cuda_targets.verdicts([row | {"layout": "contiguous"}])
    (channels_last,) = cuda_targets.verdicts([row | {"layout": "channels_last"}])
    assert not contiguous.met and channels_last.met
    assert not cuda_targets.verdicts([row | {"l2_bytes": 1e9}])


def test_cuda_where_there_is_none_is_one_sentence(capsys, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    assert run.main(["--device", "cuda", "--only", "tiny"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"--device cuda: torch {torch.__version__} is built without CUDA"
    assert run.main(["--device", "cuda", "--only", "tiny", "--list"]) == 0


def test_compare_sets_two_files_side_by_side(tmp_path, capsys):
    keys = {"op": "dropout", "direction": "forward", "dtype": "float32", "layout": "contiguous", "elements": 12_000}
    names = [tmp_path / "two.json", tmp_path / "hold.json"]
    for path, times in zip(names, ({"a": 3.0, "b": 2.0, "c": 1.0}, {"a": 4.0, "b": 1.0, "d": 1.0}), strict=True):
        rows = [keys | {"case": case, "fused_ms": ms} for case, ms in times.items()]
        path.write_text(json.dumps({"rows": rows}))
    assert compare.main([str(name) for name in names]) == 0
    header, _, *lines = capsys.readouterr().out.strip().splitlines()
    assert [cell.strip() for cell in header.strip("|").split("|")][-4:] == ["elements", "two", "hold", "x"]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [(row[1], *row[-4:]) for row in cells] == [
        ("b", "12,000", "2 ms", "1 ms", "2.00"),
        ("a", "12,000", "3 ms", "4 ms", "0.75"),
    ]
    names[1].write_text(json.dumps({"rows": []}))
    assert compare.main([str(name) for name in names]) == 2
    assert "no case in common" in capsys.readouterr().err


def test_measure_asks_the_clock_of_the_device():
    class Clock:
        def ready(self, sides):
            return {name: (lambda side=side: (side.call(), 0.0)) for name, side in sides.items()}

        def facts(self):
            return {}

    samples = measure({"a": Side(lambda: 1.0), "b": Side(lambda: 2.0)}, 0.0, 3, 5, clock=Clock())
    assert samples["a"].ms == [1.0] * 3 and samples["b"].median_ms == 2.0


def test_run_stops_at_its_deadline_and_shows_what_it_wrote(tmp_path, capsys):
    results = tmp_path / "results.json"
    options = ["--only", "silu/tiny", "--seconds", "0"]
    assert run.main([*options, "--deadline", "0", "--json", str(results)]) == 0
    assert json.loads(results.read_text())["rows"] == []
    assert run.main([*options, "--json", str(results)]) == 0
    printed = capsys.readouterr().out
    assert run.main(["--show", str(results)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] in printed
    assert run.main(["--show", str(tmp_path / "nothing.json")]) == 2
