"""Rows, tables and the summary of a run."""

import datetime
import json
import math
import os
import platform
import subprocess
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.table import Table

from .case import Case, shape_text
from .measure import Samples, median_ratio
from .workload import Workload

Row = dict[str, Any]
TRAINING_STEP = "training step"


def machine(memory: str) -> dict[str, Any]:
    """The machine, versions and commit that the numbers belong to."""
    return {
        "cpu": _cpu_model(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "isa": torch.ops.fusedtricks.cpu_capability(),
        "memory": memory,
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of the checkout, with a "+" if files differ from it; without a checkout, the variable COMMIT."""
    command = ["git", "-C", str(Path(__file__).resolve().parent), "describe", "--always", "--dirty=+"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("COMMIT")


def as_json(machine: dict[str, Any], rows: list[Row], wrong: dict[str, str]) -> str:
    """One line per row, so that a diff of two runs can be read."""
    lines = ",\n".join(json.dumps(row) for row in rows)
    return f'{{"machine": {json.dumps(machine)},\n"wrong": {json.dumps(wrong)},\n"rows": [\n{lines}\n]}}\n'


def row(case: Case, workload: Workload, samples: dict[str, Samples], memory: str) -> Row:
    """The row of a case: the median time of each side, and ratios, which are medians of the rounds' ratios."""
    eager, fused = samples["eager"], samples["fused"]
    copied, compiled = samples.get("copy"), samples.get("compile")
    kept_eager, kept_fused = workload.bytes_kept()
    return {
        "op": case.op,
        "case": case.name,
        "direction": case.direction,
        "dtype": case.dtype_name,
        "layout": case.layout,
        "shape": list(case.shape),
        "threads": torch.get_num_threads(),
        "device": case.device,
        "eager_ms": eager.median_ms,
        "fused_ms": fused.median_ms,
        "compile_ms": compiled.median_ms if compiled else None,
        "copy_ms": copied.median_ms if copied else None,
        "ratio_eager": median_ratio(eager, fused),
        "ratio_copy": median_ratio(fused, copied) if copied else None,
        "ratio_compile": median_ratio(compiled, fused) if compiled else None,
        "memory": memory,
        "rounds": len(fused.ms),
        "elements": workload.elements,
        "min_bytes": workload.min_bytes,
        "gbps_eager": _gbps(workload.min_bytes, eager.median_ms),
        "gbps_fused": _gbps(workload.min_bytes, fused.median_ms),
        "gbps_copy": _gbps(2 * workload.elements * case.dtype.itemsize, copied.median_ms) if copied else None,
        "kept_bytes_eager": kept_eager,
        "kept_bytes_fused": kept_fused,
        "faults_eager": eager.median_faults,
        "faults_fused": fused.median_faults,
        **workload.facts,
    }


def _gbps(nbytes: int | None, ms: float) -> float | None:
    return None if nbytes is None else nbytes / ms / 1e6


def table(rows: Iterable[Row], compiled: bool) -> Table:
    """One line for each row; a ratio below 1 says that fused is slower."""
    result = Table(box=box.MARKDOWN)
    for name in ("op", "case", "direction", "dtype", "layout"):
        result.add_column(name, overflow="fold")
    rows = list(rows)
    on_cpu = all(each["device"] == "cpu" for each in rows)
    numbers = ["eager ms", "fused ms", "compile ms", "x eager", "x copy", "GB/s", "kept B/element"]
    numbers += ["faults"] if on_cpu else ["peak MB", "launch"]
    for name in numbers if compiled else [n for n in numbers if n != "compile ms"]:
        result.add_column(name, justify="right", no_wrap=True)
    for each in rows:
        cells = [each["op"], each["case"], each["direction"], each["dtype"], each["layout"]]
        if each["direction"] == TRAINING_STEP:
            cells[1] += f" {shape_text(tuple(each['shape']))}"
        if "chains" in each:
            cells[1] += f", {each['chains']} chains"
        cells += [_ms(each["eager_ms"]), _ms(each["fused_ms"])]
        if compiled:
            cells.append(_ms(each["compile_ms"]))
        cells += [f"{each['ratio_eager']:.2f}", _optional(each["ratio_copy"], ".2f")]
        cells += [_optional(each["gbps_fused"], ".1f"), _kept(each)]
        if on_cpu:
            cells.append(f"{each['faults_eager']:.0f} → {each['faults_fused']:.0f}")
        else:
            cells += [_peak(each, compiled), each["launch"].partition(":")[0]]
        result.add_row(*cells)
    return result


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if value < 1 else f"{value:.2f}"


def _optional(value: float | None, format_spec: str) -> str:
    return "-" if value is None else format(value, format_spec)


def _kept(each: Row) -> str:
    """Kept for backward, eager → fused: in bytes per element, for a network in MB."""
    kept = each["kept_bytes_eager"], each["kept_bytes_fused"]
    if each["direction"] == TRAINING_STEP:
        return f"{kept[0] / 1e6:.0f} → {kept[1] / 1e6:.0f} MB"
    return f"{kept[0] / each['elements']:.2f} → {kept[1] / each['elements']:.2f}"


def _peak(each: Row, compiled: bool) -> str:
    """Peak memory in MB: eager → (compiled →) fused."""
    sides = ("eager", "compile", "fused") if compiled and "peak_bytes_compile" in each else ("eager", "fused")
    return " → ".join(f"{each[f'peak_bytes_{side}'] / 1e6:.0f}" for side in sides)


def summary(rows: list[Row]) -> Table:
    """For each op, direction, dtype and layout: geometric means of the ratios, and how many cases are slower."""
    result = Table(box=box.MARKDOWN)
    for name in ("op", "direction", "dtype", "layout"):
        result.add_column(name, overflow="fold")
    for name in ("cases", "slower", "x eager (geometric mean)", "least", "x copy (geometric mean)"):
        result.add_column(name, justify="right")
    keys = ("op", "direction", "dtype", "layout")

    def group_of(each: Row) -> tuple[str, ...]:
        return tuple(each[key] for key in keys)

    for group, members in groupby(sorted(rows, key=group_of), key=group_of):
        ratios, copies = [], []
        for each in members:
            ratios.append(each["ratio_eager"])
            copies += [each["ratio_copy"]] * (each["ratio_copy"] is not None)
        lost = sum(ratio < 1 for ratio in ratios)
        means = f"{geometric_mean(ratios):.2f}", f"{min(ratios):.2f}"
        result.add_row(*group, str(len(ratios)), str(lost), *means, f"{geometric_mean(copies):.2f}" if copies else "-")
    return result


def geometric_mean(values: list[float]) -> float:
    """The exponential of the mean logarithm."""
    return math.exp(math.fsum(math.log(value) for value in values) / len(values))
