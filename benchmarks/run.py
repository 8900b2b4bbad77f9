"""Times the fused ops against the same written with stock PyTorch, and against a copy of the same tensor.

Each case is checked first, against `fusedtricks.eager` in float64. A case with wrong values is not timed, and the exit
status is 1. Then the sides take turns: eager code, fused op, torch.compile of the eager code (with --compile) and
`Tensor.copy_` of the input, in a new random order each round, each after an untimed call. Times are medians over the
rounds. "x eager" (how many times as fast as eager) and "x copy" (how many copies long) are medians of the rounds'
ratios. An "x eager" below 1 is a loss: losses stay in the table, and are listed below it.

"GB/s" counts the bytes that the op has to move at least, each tensor read or written once. "kept B/element" is what is
kept for backward, "faults" are the minor page faults of one call; both are given as eager → fused.

The cases "overhead/*" measure what a call costs the host: tiny tensors, one thread, gradients recorded. Their goals
are set as a share of stock's time.

glibc maps blocks above 32 MiB anew each time, so that larger results are fresh memory in each call, and the page faults
cost both sides more than the arithmetic. A training loop is like that by default, and so is this (--memory touched:
nothing is set, and every call follows others like it). With --memory kept, fusedtricks.keep_freed_memory() is called
first and holds for all sides. The copy always writes to memory that was written before.

With --device cuda, times are those of the device, by CUDA events, with inputs that no cache holds. "launch" says
whether CUDA graphs were replayed, as is done for short ops, or calls launched one by one. "peak MB" is the peak memory
of one call; for a network, that of a process that has this network alone. A network's bfloat16 is autocast.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

# Behind the installed packages, so that a checkout's sources do not hide the built ones.
sys.path.append(str(Path(__file__).resolve().parent.parent))

import fusedtricks
from benchmarks import report
from benchmarks.case import Case
from benchmarks.cases import select
from benchmarks.devices import BACKENDS
from benchmarks.measure import measure, use_threads

SECONDS, QUICK_SECONDS = 2.0, 0.3
TABLE_WIDTH = 200


def main(argv: list[str] | None = None) -> int:
    """Runs the chosen cases; returns 1 if one gave wrong values, 2 if nothing was chosen or nothing could be run."""
    arguments = _parser().parse_args(argv)
    if arguments.show is not None:
        return _show(arguments)
    cases = _chosen(arguments)
    if not cases:
        print("no case matches", file=sys.stderr)
        return 2
    if arguments.list:
        print(*(case.id for case in cases), sep="\n")
        return 0
    if obstacle := BACKENDS[arguments.device].obstacle():
        print(f"--device {arguments.device}: {obstacle}", file=sys.stderr)
        return 2
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    if arguments.memory == "kept" and not fusedtricks.keep_freed_memory():
        print("--memory kept: the C library did not take the settings", file=sys.stderr)
        return 2

    machine = report.machine(arguments.memory) | BACKENDS[arguments.device].machine()
    rows: list[report.Row] = []
    wrong: dict[str, str] = {}

    def write() -> None:
        if arguments.json is not None:
            arguments.json.write_text(report.as_json(machine, rows, wrong))

    _run(cases, arguments, rows, wrong, write)
    _print(machine, rows, wrong, arguments)
    write()
    return 1 if wrong else 0


def _show(arguments: argparse.Namespace) -> int:
    """Prints the table of a run that wrote --json, even if the run was cut short."""
    try:
        written = json.loads(arguments.show.read_text())
    except (OSError, ValueError) as error:
        print(f"--show {arguments.show}: {error}", file=sys.stderr)
        return 2
    _print(written["machine"], written["rows"], written["wrong"], arguments)
    return 1 if written["wrong"] else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add(
        "--only",
        action="append",
        default=[],
        metavar="PATTERN",
        help="run the cases whose name, op/case/direction/dtype/layout, contains this or, with wildcards, matches it; "
        "may be repeated",
    )
    add("--device", choices=tuple(BACKENDS), default="cpu", help="each device has its own cases and goals")
    add("--quick", action="store_true", help="run few cases in few rounds: under a minute")
    add("--targets", action="store_true", help="run the cases that a goal is set for, and show which goals are met")
    add("--list", action="store_true", help="print the names of the cases and stop")
    add(
        "--compile",
        nargs="?",
        const="*",
        metavar="PATTERN",
        help="also time torch.compile of the eager code, in the cases that match",
    )
    add(
        "--threads",
        type=int,
        metavar="N",
        help="threads of torch, except in the overhead cases, which use one; torch's own choice by default",
    )
    add("--memory", choices=("touched", "kept"), default="touched", help="see above")
    add("--seconds", type=float, metavar="S", help="begin no further round of a case after this time")
    add("--deadline", type=float, metavar="S", help="begin no further case after this time")
    add("--json", type=Path, metavar="FILE", help="write the machine and every row, each as soon as it is measured")
    add("--show", type=Path, metavar="FILE", help="print the table of a file that --json wrote, and time nothing")
    return parser


def _chosen(arguments: argparse.Namespace) -> list[Case]:
    backend = BACKENDS[arguments.device]
    cases = select(arguments.only, arguments.quick, backend.cases, backend.quick)
    return [case for case in cases if not arguments.targets or case in backend.target_cases()]


def _run(
    cases: list[Case],
    arguments: argparse.Namespace,
    rows: list[report.Row],
    wrong: dict[str, str],
    write: Callable[[], None],
) -> None:
    """Adds a row for each case that could be timed, and the reason for each that could not; Ctrl-C stops early."""
    start = time.perf_counter()
    seconds = arguments.seconds
    if seconds is None:
        seconds = QUICK_SECONDS if arguments.quick else SECONDS
    columns = (MofNCompleteColumn(), BarColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(cases))
        try:
            for case in cases:
                if arguments.deadline is not None and time.perf_counter() - start > arguments.deadline:
                    progress.console.print(f"deadline reached after {len(rows) + len(wrong)} of {len(cases)} cases")
                    break
                progress.update(task, description=case.id)
                if case.device != "cpu" and not progress.console.is_terminal:
                    progress.console.print(case.id, highlight=False, soft_wrap=True)  # names the kernel that hangs
                try:
                    rows.append(_run_case(case, seconds, arguments))
                except BACKENDS[arguments.device].failures as failure:
                    wrong[case.id] = str(failure)
                write()
                progress.advance(task)
        except KeyboardInterrupt:
            progress.console.print(f"interrupted after {len(rows)} of {len(cases)} cases")


def _run_case(case: Case, seconds: float, arguments: argparse.Namespace) -> report.Row:
    workload = case.build(case)
    with use_threads(workload.threads):
        workload.check()
        sides = dict(workload.sides)
        if arguments.compile and case.matches(arguments.compile):
            sides["compile"] = workload.compiled()
        backend = BACKENDS[case.device]
        clock = backend.clock()
        samples = measure(sides, seconds, workload.min_rounds, workload.max_rounds, clock=clock)
        return report.row(case, workload, samples, arguments.memory) | clock.facts() | backend.peaks(workload, sides)


def _print(
    machine: dict[str, Any], rows: list[report.Row], wrong: dict[str, str], arguments: argparse.Namespace
) -> None:
    console = Console(width=max(TABLE_WIDTH, Console().width))
    console.print(", ".join(f"{key} {value}" for key, value in machine.items()), "\n", highlight=False)
    if rows and arguments.targets:
        console.print(BACKENDS[rows[0]["device"]].target_table(rows))
    elif rows:
        console.print(report.table(rows, any(row["compile_ms"] is not None for row in rows)))
        console.print(report.summary(rows))
    slower = [row for row in rows if row["ratio_eager"] < 1]
    console.print(f"{len(rows)} cases timed; fused is slower than eager in {len(slower)}", highlight=False)
    for row in slower:
        name = "/".join(row[key] for key in ("op", "case", "direction", "dtype", "layout"))
        console.print(f"  {row['ratio_eager']:.2f} {name}", highlight=False)
    for name, reason in wrong.items():
        console.print(f"WRONG, not timed: {name}: {reason}", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
