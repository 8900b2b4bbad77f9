"""The emulation that runs CUDA kernels without a GPU: it computes correctly and detects the errors it should."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "emulation" / "selftest.cpp"
SCHEDULES = ["in_order", "reversed", "shuffled"]
VARIANTS = {
    "plain": ["-Wall", "-Wextra", "-Werror"],
    "ucontext": ["-DFUSEDTRICKS_EMULATED_UCONTEXT"],
    "without barrier": ["-DSELFTEST_WITHOUT_BARRIER"],
    "address sanitizer": ["-fsanitize=address,bounds"],
}
RIGHT = ["block_sums", "several_os_threads", "shuffles", "votes", "intrinsics", "grid", "arrivals", "after_failures"]

pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")


@pytest.fixture(scope="module")
def selftest(tmp_path_factory):
    """A function that runs a case of selftest.cpp; each variant is compiled once."""
    folder = tmp_path_factory.mktemp("emulation")

    def run(case, variant="plain", schedule="in_order", **environment):
        program = folder / variant.replace(" ", "_")
        if not program.exists():
            command = ["g++", "-std=c++20", "-O1", "-g", "-pthread", *VARIANTS[variant], SOURCE, "-o", program]
            compiled = subprocess.run(command, capture_output=True, text=True)
            assert compiled.returncode == 0, compiled.stderr[:5000]
        environment["FUSEDTRICKS_EMULATED_SCHEDULE"] = schedule
        return subprocess.run([program, case], env=os.environ | environment, capture_output=True, text=True, timeout=60)

    return run


@pytest.mark.parametrize("variant", ["plain", "ucontext", "address sanitizer"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("case", RIGHT)
def test_kernels_compute_what_they_should(case, schedule, variant, selftest):
    process = selftest(case, variant, schedule)
    assert process.returncode == 0, process.stderr


def test_a_missing_barrier_shows(selftest):
    failed = [s for s in SCHEDULES if "sums == expected" in selftest("block_sums", "without barrier", s).stderr]
    assert "in_order" in failed and "shuffled" in failed


def test_schedules_order_threads_and_blocks(selftest):
    order = {s: [int(i) for i in selftest("order", schedule=s).stdout.split()] for s in SCHEDULES}
    assert order["in_order"] == list(range(12))
    assert order["reversed"] == list(range(12))[::-1]
    assert sorted(order["shuffled"]) == list(range(12))
    assert order["shuffled"] not in (order["in_order"], order["reversed"])
    assert selftest("order", schedule="shuffled").stdout.split() == [str(i) for i in order["shuffled"]]


def test_unknown_schedule(selftest):
    process = selftest("order", schedule="sideways")
    assert process.returncode == 1 and "sideways: not in_order, reversed or shuffled" in process.stderr


SYNC = r"__syncthreads, \S*selftest\.cpp:\d+"


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("some_return", rf"barrier divergence in block \d, threads: 128 at {SYNC}; 128 returned\."),
        ("some_wait_elsewhere", rf"barrier divergence in block 0, threads: 128 at {SYNC}; 128 at {SYNC}\."),
        ("lane_returns", r"threads: 33 returned; 31 at __syncwarp of lanes 0xffffffff, \S+\."),
        ("half_a_warp_shuffles", rf"threads: 16 at __shfl_xor_sync of lanes 0xffffffff, \S+; 16 at {SYNC}\."),
        ("lanes_that_are_not", r"thread 3\d of block 0 at __syncwarp .*: its warp has fewer lanes"),
        ("reads_outside_mask", r"at __shfl_sync of lanes 0x0000ffff, .*: it reads a lane that is not among them"),
        ("some_blocks_sync", r"grid barrier divergence: 3 of 4 blocks at grid_sync\(\), the others returned"),
        ("too_few_arrive", r"3 of 4 blocks wait for arrivals that do not come"),
        ("not_cooperative", r"grid_sync\(\) in a kernel that was not launched as cooperative"),
        ("throws", r"thrown by a thread"),
        ("throws_cooperative", r"thrown by a thread"),
        ("overrun", r"a thread wrote past 24 bytes of dynamic shared memory"),
        ("misaligned", r"misaligned address in a load or store"),
        ("no_threads", r"invalid launch: 1 blocks of 0 threads"),
        ("too_many_threads", r"invalid launch: 1 blocks of 1025 threads"),
        ("no_blocks", r"invalid launch: 0 blocks of 32 threads"),
        ("too_much_shared", r"invalid launch: 1 blocks of 32 threads and 307200 bytes of shared memory"),
        ("too_many_resident", r"cooperative launch of 9 blocks, resident at once: 8"),
    ],
)
def test_faults_come_out_of_the_launch(case, message, schedule, selftest):
    process = selftest(case, schedule=schedule, FUSEDTRICKS_EMULATED_SMS="4")
    assert process.returncode == 1
    assert re.search(message, process.stderr), process.stderr


def test_address_sanitizer_names_the_line_of_an_overrun(selftest):
    line = next(i for i, text in enumerate(SOURCE.read_text().splitlines(), 1) if "shared[count] = 1" in text)
    process = selftest("overrun", "address sanitizer")
    assert process.returncode != 0
    assert "heap-buffer-overflow" in process.stderr
    assert re.search(rf"#0 .* in overruns.*selftest\.cpp:{line}\b", process.stderr), process.stderr
