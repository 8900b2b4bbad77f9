"""The CUDA kernels' own sources, run on the CPU: the suites pass, in whatever order threads and blocks take turns."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch
from batch_norm_case import magnitudes
from emulation import library
from emulation.package import make_package
from emulation.results import Results, batch_norm_case, collect
from rounding import ROUNDINGS
from torch import Tensor

TESTS = Path(__file__).parent
SCHEDULES = ["in_order", "reversed", "shuffled"]
# By path. So two has many blocks for each channel, hold has some, and groups that take turns.
MULTIPROCESSORS = {"two": 32, "hold": 4}
PATHS = list(MULTIPROCESSORS)
# Bytes for each block in the suites under that schedule: so few that groups of the smallest shapes need several blocks,
# which meet in every turn.
SHARED_MEMORY = {
    "in_order": {},
    "reversed": {"FUSEDTRICKS_EMULATED_SHARED": "40000"},
    "shuffled": {"FUSEDTRICKS_EMULATED_SHARED": "30000"},
}

# Schedule, path, files, what the names of the tests contain.
QUICK = ("in_order", "two", ["batch_norm_act", "dropout"], "(shape or layout or residual) and not compile")
SUITES = [
    ("in_order", "two", ["batch_norm_act", "activations", "dropout", "determinism", "modules"], ""),
    ("in_order", "two", ["batch_norm_dropout", "batch_norm_pool"], "not compile and not export"),
    ("in_order", "two", ["fractional_max_pool", "stochastic_depth"], "not compile and not numbers_of_samples"),
    ("in_order", "two", ["act_dropout", "feature_dropout"], "not larger and not compile and not threads"),
    ("in_order", "two", ["recompute"], "shape or layout or residual or statistics or cat or act_dropout"),
    ("in_order", "hold", ["batch_norm_act", "determinism"], ""),
    ("in_order", "hold", ["recompute"], "shape or layout or residual or statistics"),
    ("reversed", "two", ["batch_norm_act", "activations", "dropout"], "shape or layout or residual or in_place"),
    ("reversed", "two", ["batch_norm_pool", "stochastic_depth"], "shape or layout or windows or add_samples"),
    ("reversed", "hold", ["batch_norm_act"], "shape or layout or residual"),
    ("shuffled", "two", ["batch_norm_act", "activations", "dropout"], "shape or layout or residual or in_place"),
    ("shuffled", "two", ["batch_norm_dropout", "batch_norm_pool"], "shape or layout or residual or windows"),
    ("shuffled", "two", ["fractional_max_pool", "stochastic_depth"], "layout or dtype or activation or add_samples"),
    ("shuffled", "two", ["act_dropout", "feature_dropout"], "every_layout or every_dtype or every_shape"),
    ("shuffled", "hold", ["batch_norm_act"], "shape or layout or residual"),
]

# Path, file in csrc/cuda, function, number of the barrier in it.
BARRIERS = [
    ("two", "device/reduce.cuh", "merge_threads", 0),
    ("two", "device/reduce.cuh", "merge_threads", 1),
    ("two", "device/reduce.cuh", "total_partials", 0),
    ("two", "batch_norm/finish.cuh", "finish_statistics", 0),
    ("two", "batch_norm/statistics.cuh", "find_pivots", 0),
    ("two", "batch_norm/two_kernels.cuh", "sum_gradients", 0),
    ("hold", "batch_norm/finish.cuh", "set_forward", 0),
    ("hold", "batch_norm/finish.cuh", "finish_sums", 0),
    ("hold", "batch_norm/persistent_backward.cuh", "add_part", 0),
    ("hold", "batch_norm/persistent_backward.cuh", "persistent_differentiate", 0),
    ("hold", "batch_norm/persistent_block.cuh", "meet", 0),
    ("hold", "batch_norm/persistent_block.cuh", "meet", 1),
    ("hold", "batch_norm/persistent_block.cuh", "meet", 2),
    ("hold", "batch_norm/persistent_forward.cuh", "leave_statistics", 0),
]

pytestmark = pytest.mark.skipif(not shutil.which(library.COMPILER[0]), reason=f"needs {library.COMPILER[0]} (CXX)")


def python(site: Path, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs this interpreter on a copy of the package."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("FUSEDTRICKS_", "PYTEST_"))}
    # One thread: the kernels have no use for more, and several processes run at once.
    inherited |= {"PYTHONPATH": os.pathsep.join([str(site), str(TESTS)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=site, env=inherited | environment, capture_output=True, text=True, timeout=600)


def run_suite(site: Path, schedule: str, path: str, names: list[str], pattern: str) -> subprocess.CompletedProcess[str]:
    files = [TESTS / f"test_{name}.py" for name in names]
    options = ["-q", "-p", "no:cacheprovider", f"--rootdir={TESTS.parent}", "-c", TESTS.parent / "pyproject.toml"]
    environment = {"FUSEDTRICKS_EMULATED_SCHEDULE": schedule, "FUSEDTRICKS_CUDA_PATH": path} | SHARED_MEMORY[schedule]
    return python(site, "-m", "pytest", *options, "-k", pattern, *files, **environment)


def run_calls(site: Path, runs: list[dict[str, str]], pattern: str = "") -> list[Results | str]:
    """What `emulation.results` saves."""
    saved = site / f"{uuid.uuid4()}.pt"
    process = python(site, "-m", "emulation.results", saved, json.dumps(runs), pattern)
    assert process.returncode == 0, process.stderr[-5000:]
    return torch.load(saved)


def under_every_schedule(path: str) -> list[dict[str, str]]:
    """The environments of three runs."""
    where = {"FUSEDTRICKS_CUDA_PATH": path, "FUSEDTRICKS_EMULATED_SMS": str(MULTIPROCESSORS[path])}
    return [where | {"FUSEDTRICKS_EMULATED_SCHEDULE": schedule} for schedule in SCHEDULES]


def without_barrier(text: str, function: str, number: int) -> str:
    """The source without the barrier, or the wait, of that number after the function's name and its parenthesis."""
    definition = re.search(rf"\b{function}\([^;]*?\{{", text)
    assert definition is not None, function
    end = text.index("\n}", definition.end())
    barriers = [
        *re.compile(r"(__syncthreads|grid_sync|meet_blocks|wait_for_copies)\([^;]*;").finditer(
            text, definition.end(), end
        )
    ]
    assert number < len(barriers), f"{function} has {len(barriers)} barriers"
    return text[: barriers[number].start()] + text[barriers[number].end() :]


@pytest.fixture(scope="session")
def pool() -> Iterator[Executor]:
    """Runs processes side by side, so that a test may find its own finished."""
    pool = ThreadPoolExecutor(os.cpu_count())
    yield pool
    pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("emulated")
    library.build(folder)
    return folder


@pytest.fixture(scope="session")
def site(built: Path) -> Path:
    """The folder of a copy of the package that runs the emulated kernels."""
    return make_package(built / "site", built / "library.so")


def test_the_emulated_kernels_answer(site):
    """They alone know the schedule."""
    code = "import torch, fusedtricks.functional as f; f.activation(torch.ones(3), 'relu')"
    process = python(site, "-c", code, FUSEDTRICKS_EMULATED_SCHEDULE="sideways")
    assert "FUSEDTRICKS_EMULATED_SCHEDULE=sideways" in process.stderr


@pytest.fixture(scope="session")
def answers(site: Path, pool: Executor) -> dict[str, Future[list[Results | str]]]:
    """By path: under every schedule, then in order with one multiprocessor."""
    one = {"FUSEDTRICKS_EMULATED_SCHEDULE": "in_order", "FUSEDTRICKS_EMULATED_SMS": "1"}
    return {path: pool.submit(run_calls, site, [*under_every_schedule(path), one]) for path in PATHS}


def assert_same_bits(actual: Results | str, expected: Results) -> None:
    assert isinstance(actual, dict), actual
    assert actual.keys() == expected.keys()
    for call, results in expected.items():
        for name, value in results.items():
            assert torch.equal(actual[call][name], value), f"{name} of {call}"


@pytest.fixture(scope="session")
def quick_suite(site: Path, pool: Executor, answers: object) -> Future[subprocess.CompletedProcess[str]]:
    """Started after the answers, which more tests wait for."""
    return pool.submit(run_suite, site, *QUICK)


@pytest.fixture(scope="session")
def suites(site: Path, pool: Executor) -> list[Future[subprocess.CompletedProcess[str]]]:
    return [pool.submit(run_suite, site, *suite) for suite in SUITES]


@pytest.mark.slow
@pytest.mark.parametrize(("path", "file", "function", "number"), BARRIERS)
def test_a_removed_barrier_shows(path, file, function, number, built, answers, suites, tmp_path):
    """Runs while the suites do."""
    edit = partial(without_barrier, function=function, number=number)
    edited = library.build_edited(tmp_path, built, "batch_norm/instantiate/batch_norm_float.cu", file, edit)
    calls = "batch_norm-float32-.*-leaky_relu"
    wrong = run_calls(make_package(tmp_path / "site", edited), under_every_schedule(path), calls)
    right = {call: results for call, results in answers[path].result()[0].items() if re.search(calls, call)}
    shown = []
    for schedule, results in zip(SCHEDULES, wrong, strict=True):
        try:
            assert_same_bits(results, right)
        except AssertionError as error:
            shown.append(f"{schedule}: {error}".splitlines()[0])
    print("\n".join(shown))
    assert shown


def assert_passed(process: subprocess.CompletedProcess[str]) -> None:
    assert process.returncode == 0, process.stdout[-5000:] + process.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(SUITES)), ids=["-".join(suite[:2]) for suite in SUITES])
def test_suite(number, suites):
    assert_passed(suites[number].result())


def test_quick_suite(quick_suite):
    """A part of what test_suite runs."""
    assert_passed(quick_suite.result())


@pytest.mark.parametrize("schedule", SCHEDULES[1:])
@pytest.mark.parametrize("path", PATHS)
def test_same_bits_under_every_schedule(path, schedule, answers):
    results = answers[path].result()
    assert_same_bits(results[SCHEDULES.index(schedule)], results[0])


@pytest.fixture(scope="session")
def of_the_cpu() -> Results:
    return collect()


@pytest.mark.parametrize("path", PATHS)
def test_masks_are_those_of_the_cpu(path, answers, of_the_cpu):
    results = answers[path].result()[0]
    masks = {call: results[call] for call in results if call.startswith("mask")}
    assert masks
    assert_same_bits(masks, {call: of_the_cpu[call] for call in masks})


def assert_equal_but_for_roundings(actual: Tensor, expected: Tensor, scale: float, name: str) -> None:
    """Each of the two may have been rounded otherwise at the store, and in the arithmetic before."""
    if not expected.is_floating_point():
        assert torch.equal(actual, expected), name
        return
    atol = 2 * ROUNDINGS * torch.finfo(torch.float32).eps * scale
    rtol = torch.finfo(expected.dtype).eps
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol, msg=lambda message: f"{name}: {message}")


@pytest.mark.parametrize("multiprocessors", ["many", "one"])
@pytest.mark.parametrize("path", PATHS)
def test_values_are_those_of_the_cpu(path, multiprocessors, answers, of_the_cpu):
    results = answers[path].result()[0 if multiprocessors == "many" else -1]
    assert results.keys() == of_the_cpu.keys()
    for call, expected in of_the_cpu.items():
        kind, *which = call.split("-")
        scales = magnitudes(batch_norm_case(*which)) if kind == "batch_norm" else {}
        scales["save_mean"] = scales.get("running_mean", 0.0)
        for name, value in expected.items():
            scale = scales.get(name, value.double().abs().max().item())
            assert_equal_but_for_roundings(results[call][name], value, scale, f"{name} of {call}")


@pytest.mark.parametrize("path", PATHS)
def test_several_blocks_share_a_channel(path, answers):
    """Or the schedules above would have had no blocks to reorder: statistics change with the multiprocessors."""
    many, *_, one = answers[path].result()
    changed = {
        call: not torch.equal(results["save_mean"], many[call]["save_mean"])
        for call, results in one.items()
        if "save_mean" in results and "few_rows" not in call
    }
    # With persistent kernels, blocks only share a channel that does not fit into the shared memory of one.
    assert all(changed.values()) if path == "two" else any(changed.values()), changed
