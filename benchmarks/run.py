"""Times the fused ops against what is written with stock PyTorch, and against a copy of the same tensor.

Each case is checked first: what gives other values than it must is not timed, and the exit status is 1. Then
eager code, fused op, torch.compile of the eager code (--compile) and `Tensor.copy_` of the input take turns:
each is called once a round, in an order drawn anew, as the second of two calls. Times are medians over the
rounds; "x eager" (how many times as fast as eager) and "x copy" (how many copies long) are medians of the
rounds' ratios. An "x eager" below 1 is a loss: losses stay in the table, and are listed at its end.

"GB/s" counts what the op moves at least, each tensor read or written once. "kept B/element" is what is kept
for backward, "faults" the minor page faults of one call: of eager → of fused.

glibc maps blocks above 32 MiB anew each time, so larger results are fresh memory in each call, and the page
faults cost both sides more than the arithmetic. A training loop has it so unless told otherwise, which is the
default here (--memory touched: nothing is set, every call comes after others like it). With --memory kept,
fusedtricks.keep_freed_memory() is called first and holds for all sides. The copy always goes to memory that
was written before.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

# Behind the installed packages, so that a checkout's sources do not hide the built ones.
sys.path.append(str(Path(__file__).resolve().parent.parent))

import fusedtricks
from benchmarks import report, targets
from benchmarks.case import Case
from benchmarks.cases import select
from benchmarks.measure import measure
from benchmarks.workload import Mismatch

SECONDS, QUICK_SECONDS = 2.0, 0.3
TABLE_WIDTH = 200


def main(argv: list[str] | None = None) -> int:
    """Runs the chosen cases; 1 if a fused op gave wrong values, 2 if nothing was chosen."""
    arguments = _parser().parse_args(argv)
    cases = _chosen(arguments)
    if not cases:
        print("no case matches", file=sys.stderr)
        return 2
    if arguments.list:
        print(*(case.id for case in cases), sep="\n")
        return 0
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    if arguments.memory == "kept" and not fusedtricks.keep_freed_memory():
        print("--memory kept: the C library did not take the settings", file=sys.stderr)
        return 2

    machine = report.machine(arguments.memory)
    rows, wrong = _run(cases, arguments)
    _print(machine, rows, wrong, arguments)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"machine": machine, "rows": rows, "wrong": wrong}, indent=1) + "\n")
    return 1 if wrong else 0


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
        help="cases whose name, op/case/direction/dtype/layout, contains this or, with wildcards, matches "
        "it; may be given again",
    )
    add("--quick", action="store_true", help="few cases, few rounds: under a minute")
    add("--targets", action="store_true", help="the cases that a goal is set for, and whether it is met")
    add("--list", action="store_true", help="print the names of the cases and stop")
    add("--compile", action="store_true", help="time torch.compile of the eager code as well")
    add("--threads", type=int, metavar="N", help="threads of torch; its own choice by default")
    add("--memory", choices=("touched", "kept"), default="touched", help="see above")
    add("--seconds", type=float, metavar="S", help="begin no further round of a case after so long")
    add("--json", type=Path, metavar="FILE", help="write the machine and every row")
    return parser


def _chosen(arguments: argparse.Namespace) -> list[Case]:
    cases = select(arguments.only, arguments.quick)
    return [case for case in cases if not arguments.targets or case in targets.target_cases()]


def _run(cases: list[Case], arguments: argparse.Namespace) -> tuple[list[report.Row], dict[str, str]]:
    """Rows of the cases that could be timed, and what was wrong with the others; Ctrl-C stops early."""
    rows: list[report.Row] = []
    wrong: dict[str, str] = {}
    seconds = arguments.seconds
    if seconds is None:
        seconds = QUICK_SECONDS if arguments.quick else SECONDS
    columns = (MofNCompleteColumn(), BarColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(cases))
        try:
            for case in cases:
                progress.update(task, description=case.id)
                try:
                    rows.append(_run_case(case, seconds, arguments))
                except Mismatch as mismatch:
                    wrong[case.id] = str(mismatch)
                progress.advance(task)
        except KeyboardInterrupt:
            progress.console.print(f"interrupted after {len(rows)} of {len(cases)} cases")
    return rows, wrong


def _run_case(case: Case, seconds: float, arguments: argparse.Namespace) -> report.Row:
    workload = case.build(case)
    workload.check()
    sides = dict(workload.sides)
    if arguments.compile:
        sides["compile"] = workload.compiled()
    samples = measure(sides, seconds, workload.min_rounds, workload.max_rounds)
    return report.row(case, workload, samples, arguments.memory)


def _print(
    machine: dict[str, Any], rows: list[report.Row], wrong: dict[str, str], arguments: argparse.Namespace
) -> None:
    console = Console(width=max(TABLE_WIDTH, Console().width))
    console.print(", ".join(f"{key} {value}" for key, value in machine.items()), "\n", highlight=False)
    if rows and arguments.targets:
        console.print(targets.target_table(rows))
    elif rows:
        console.print(report.table(rows, arguments.compile))
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
