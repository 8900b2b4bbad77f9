"""How long `fusedtricks.fuse` takes: processor seconds for ResNets of several depths and MobileNetV2.

Each network is fused several times, once with nothing else in the process and once beside ten million objects, by
turns; "beside" is the median of the ratios. "per module" shows whether the time grows faster than the model.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

# Behind the installed packages, so that a checkout's sources do not hide the built ones.
sys.path.append(str(Path(__file__).resolve().parent.parent))

import fusedtricks
from benchmarks import report
from benchmarks.families import classifier

DEPTHS = {"resnet50": [3, 4, 6, 3], "resnet101": [3, 4, 23, 3], "resnet152": [3, 8, 36, 3], "resnet272": [3, 18, 66, 3]}
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    **{name: partial(classifier, "ResNet", depths=depths) for name, depths in DEPTHS.items()},
    "mobilenet-v2": partial(classifier, "MobileNetV2"),
}
OBJECTS, ROUNDS = 10_000_000, 5


def main(argv: list[str] | None = None) -> int:
    """Prints a table; with --json, writes it too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--objects", type=int, default=OBJECTS, help="how many other objects live in the process")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(argv)
    rows = []
    for name in arguments.only:
        rows.append(_measured(name, arguments.rounds, arguments.objects))
        print(
            "{name:14} {modules:5} modules  {chains:4} chains  {seconds:6.3f} s  beside {beside:4.2f}".format(
                **rows[-1]
            )
        )
    if arguments.json:
        text = json.dumps({"machine": report.machine("touched"), "objects": arguments.objects, "rows": rows}, indent=1)
        arguments.json.write_text(text + "\n")
    return 0


def _measured(name: str, rounds: int, objects: int) -> dict[str, Any]:
    model = NETWORKS[name]()
    alone, beside = [], []
    for _ in range(rounds):
        alone.append(_seconds(model))
        others: list[Any] = [[] for _ in range(objects)]
        beside.append(_seconds(model))
        del others
    ratios = [b / a for a, b in zip(alone, beside, strict=True)]
    return {
        "name": name,
        "modules": len(list(model.modules())),
        "chains": len(fusedtricks.report(fusedtricks.fuse(model)).chains),
        "seconds": round(statistics.median(alone), 4),
        "beside": round(statistics.median(ratios), 3),
    }


def _seconds(model: nn.Module) -> float:
    """Processor seconds of one call, without the copy of the model."""
    model = copy.deepcopy(model)
    started = time.process_time()
    fusedtricks.fuse(model, inplace=True)
    return time.process_time() - started


if __name__ == "__main__":
    sys.exit(main())
