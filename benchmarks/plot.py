"""Draws a file that run.py wrote: bytes per second over the tensor's size, with the rate of a copy as the roof.

python benchmarks/run.py --json results.json
python benchmarks/plot.py results.json results.png
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

MARKERS = {"contiguous": "o", "channels_last": "s"}


def main(argv: list[str] | None = None) -> int:
    """Writes the picture; returns 2 if the file has no op to draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("results", type=Path, help="written by run.py --json")
    parser.add_argument("picture", type=Path, help="PNG to write")
    arguments = parser.parse_args(argv)
    results = json.loads(arguments.results.read_text())
    rows = [row for row in results["rows"] if row["min_bytes"] is not None]
    if not rows:
        print(f"{arguments.results} has no op to draw", file=sys.stderr)
        return 2
    draw(results["machine"], rows, arguments.picture)
    return 0


def draw(machine: dict[str, Any], rows: list[dict[str, Any]], picture: Path) -> None:
    """One panel for each direction and dtype, with a line from the rate of eager to that of fused for each case."""
    directions = sorted({row["direction"] for row in rows})
    dtypes = sorted({row["dtype"] for row in rows}, reverse=True)
    ops = list(dict.fromkeys(row["op"] for row in rows))
    colors = {op: pyplot.colormaps["tab20"](i % 20) for i, op in enumerate(ops)}
    figure, axes = pyplot.subplots(
        len(dtypes),
        len(directions),
        figsize=(7 * len(directions), 4.5 * len(dtypes)),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for dtype, line in zip(dtypes, axes, strict=True):
        for direction, panel in zip(directions, line, strict=True):
            here = [row for row in rows if (row["dtype"], row["direction"]) == (dtype, direction)]
            _draw_panel(panel, here, colors)
            panel.set_title(f"{direction}, {dtype}")
            panel.label_outer()
    figure.supxlabel("size of the tensor, MB")
    figure.supylabel("GB/s: bytes to move at least / time")
    where = machine.get("device", machine["cpu"])
    figure.suptitle(f"{where}, {machine['threads']} threads, {machine['isa']}, torch {machine['torch']}")
    figure.legend(handles=_legend(colors), loc="outside right upper", fontsize="small")
    figure.savefig(picture, dpi=120)
    pyplot.close(figure)


def _draw_panel(panel: Axes, rows: list[dict[str, Any]], colors: dict[str, Any]) -> None:
    panel.set(xscale="log", yscale="log")
    panel.grid(alpha=0.3)
    roof: dict[float, float] = {}
    for row in rows:
        size = row["elements"] * (4 if row["dtype"] == "float32" else 2) / 1e6
        roof[size] = max(roof.get(size, 0.0), row["gbps_copy"])
        color, marker = colors[row["op"]], MARKERS[row["layout"]]
        panel.plot([size, size], [row["gbps_eager"], row["gbps_fused"]], color=color, alpha=0.4, linewidth=1)
        panel.plot(size, row["gbps_eager"], marker, color=color, fillstyle="none", markersize=5)
        panel.plot(size, row["gbps_fused"], marker, color=color, markersize=5)
    panel.plot(*zip(*sorted(roof.items()), strict=True), color="black", linestyle="--", zorder=0) if roof else None


def _legend(colors: dict[str, Any]) -> list[Line2D]:
    def entry(label: str, **style: Any) -> Line2D:
        return Line2D([], [], label=label, **{"color": "black", "linestyle": "none", **style})

    return [
        entry("Tensor.copy_ (the roof)", linestyle="--"),
        entry("fused", marker="o"),
        entry("eager", marker="o", fillstyle="none"),
        entry("channels_last", marker="s"),
        *(entry(op, marker="o", color=color) for op, color in colors.items()),
    ]


if __name__ == "__main__":
    sys.exit(main())
