"""The report of `python -m fusedtricks info`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import torch

from fusedtricks import _build_info, self_check
from fusedtricks.functional import fallbacks


def _openmp() -> str:
    standard = re.search(r"OpenMP (\d+\.\d+)", torch.__config__.parallel_info())
    if standard is None:
        return "not used by this torch"
    return ", ".join([standard[1], *openmp_runtimes()])


def openmp_runtimes() -> list[str]:
    """The OpenMP libraries loaded into this process; empty on systems other than Linux."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return []
    loaded = {Path(line.split()[-1]).name for line in maps.read_text().splitlines() if "/" in line}
    return sorted(name for name in loaded if re.match(r"lib(gomp|iomp|omp)\b", name))


def _facts() -> Iterator[tuple[str, str]]:
    built = [name.removeprefix("cpu_") for name in _build_info.backends if name.startswith("cpu_")]
    yield "fusedtricks", f"{_build_info.version} in {Path(__file__).parent}"
    yield "torch", f"{torch.__version__} (built for {_build_info.torch})"
    yield "backends built", ", ".join(["cpu", *(["cuda"] if "cuda" in _build_info.backends else [])])
    for name, reason in _build_info.left_out.items():
        yield "left out", f"{name}: {reason}"
    yield "instruction set", f"{torch.ops.fusedtricks.cpu_capability()} (built: {', '.join(built)})"
    yield "CUDA architectures", ", ".join(_build_info.cuda_architectures) or "none"
    yield "OpenMP", _openmp()
    yield "threads", f"{torch.get_num_threads()}"
    for call, count in fallbacks().items():
        yield "fallbacks", f"{count} of {call}"


def main() -> int:
    """Prints the report. Returns the exit status: 1 if a self-check fails, else 0."""
    for name, value in _facts():
        print(f"{name:<20}{value}")
    passed = True
    for result in self_check.run(_build_info.backends):
        print(f"{'self-check':<20}{result.backend:<6}{result.check:<16}{result.verdict}", flush=True)
        passed &= result.passed
    return 0 if passed else 1
