"""Forces each of the machine's instruction sets and checks that it is used and gives correct results."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from fusedtricks import _build_info

FORCE = "ATEN_CPU_CAPABILITY"
INSTRUCTION_SETS = _build_info.instruction_sets


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name != FORCE}
    return subprocess.run(
        [sys.executable, *arguments], env=inherited | environment, text=True, capture_output=True, timeout=600
    )


@cache
def best_of_the_machine() -> str:
    result = python("-c", "import torch; print(torch.backends.cpu.get_cpu_capability())")
    name = result.stdout.strip().lower()
    return name if name in INSTRUCTION_SETS else "default"


@pytest.mark.each_isa
def test_the_forced_instruction_set_answers():
    """Checked with what the kernel library reports, not with what was requested."""
    assert torch.ops.fusedtricks.cpu_capability() == os.environ.get(FORCE, best_of_the_machine())


@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_instruction_set(name):
    """Runs the tests marked each_isa, on the CPU, in a process that is forced to `name`."""
    best = best_of_the_machine()
    if name not in INSTRUCTION_SETS[: INSTRUCTION_SETS.index(best) + 1]:
        pytest.skip(f"this machine's best is {best}")
    if f"cpu_{name}" not in _build_info.backends:
        pytest.skip(f"{name} was not built")
    folder = Path(__file__).parent
    # The other tests already use the machine's best: for it, check only that its name is accepted.
    tests = Path(__file__) if name == torch.ops.fusedtricks.cpu_capability() else folder
    selection = ("-m", "each_isa and not cuda")
    result = python("-m", "pytest", "-q", *selection, "-p", "no:cacheprovider", str(tests), **{FORCE: name})
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
