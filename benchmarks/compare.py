"""Compares two files that run.py wrote: how many times as fast the fused side is in the second.

python benchmarks/run.py --json before.json
python benchmarks/run.py --json after.json
python benchmarks/compare.py before.json after.json
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

KEY = ("op", "case", "direction", "dtype", "layout")
Rows = dict[tuple[str, ...], dict[str, Any]]


def main(argv: list[str] | None = None) -> int:
    """Prints a line for each case that both files have, the largest gain first; returns 2 if there is none."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("before", type=Path, help="written by run.py --json")
    parser.add_argument("after", type=Path, help="another file, of the same cases")
    arguments = parser.parse_args(argv)
    before, after = _rows(arguments.before), _rows(arguments.after)
    common = sorted(before.keys() & after.keys(), key=lambda key: after[key]["fused_ms"] / before[key]["fused_ms"])
    if not common:
        print(f"{arguments.before} and {arguments.after} have no case in common", file=sys.stderr)
        return 2
    table = Table(box=box.MARKDOWN)
    for name in KEY:
        table.add_column(name, overflow="fold")
    for name in ("elements", arguments.before.stem, arguments.after.stem, "x"):
        table.add_column(name, justify="right", no_wrap=True)
    for key in common:
        times = before[key]["fused_ms"], after[key]["fused_ms"]
        milliseconds = (f"{ms:.4g} ms" for ms in times)
        table.add_row(*key, f"{after[key]['elements']:,}", *milliseconds, f"{times[0] / times[1]:.2f}")
    console = Console(width=max(160, Console().width))
    console.print(table)
    return 0


def _rows(path: Path) -> Rows:
    return {tuple(row[name] for name in KEY): row for row in json.loads(path.read_text())["rows"]}


if __name__ == "__main__":
    sys.exit(main())
