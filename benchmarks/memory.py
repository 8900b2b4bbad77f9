"""Measures the memory of training steps: what is kept for the backward, the peak, and what it costs in time.

Each network of stock layers, written as torchvision writes it, is run in several ways: "stock" as it is; "fused" by
fusedtricks.fuse(network); "recompute" by fuse(network, recompute=True), and through other numbers of residual joints;
"checkpoint" with torch.utils.checkpoint around each block; with --compile also "compiled" by torch.compile, alone and
with activation_memory_budget = 0.5. All share one set of weights. Steps are of float32: clear the gradients, forward,
loss, backward, SGD.

Checked first, on a few images: gradients must agree with stock's in float64 as in the other benchmarks, and "recompute"
must give the same bits as "fused" in every gradient and buffer. A side that does not is not measured: its row says so,
and the exit status is 1.

"kept" is what is alive at the end of the forward beside the network's output, above what was there before. "peak" is
the most that is alive at any time in a step, above what was there before it: weights and images; gradients of the
weights count. Both are measured, from the records of torch's allocator, for all sides in the same way. "floor" is
arithmetic: the outputs of all convolutions and linear layers, from which all else follows without repeating one of them
(memory_floor.py); what repeats convolutions, as checkpoints do, can go below. "time" is that of a step as a share of
stock's: the median over rounds, in which all sides take turns, of the ratios of one round. Checkpoints update running
statistics twice a step; nothing is done about that.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

# Behind the installed packages, so that a checkout's sources do not hide the built ones.
sys.path.append(str(Path(__file__).resolve().parent.parent))

import fusedtricks
from benchmarks import report
from benchmarks.case import shape_text
from benchmarks.devices import BACKENDS
from benchmarks.end_to_end import Criterion
from benchmarks.live_bytes import kept_by, live_bytes
from benchmarks.measure import Side, measure, median_ratio
from benchmarks.memory_check import find_wrong
from benchmarks.memory_floor import floor_bytes
from benchmarks.memory_sides import STOCK, sides
from benchmarks.op import Shape
from benchmarks.plain_networks import (
    VGG16BN,
    DenseNet121,
    FourLayers,
    MobileNetV2,
    MobileNetV2SiLU,
    ResNet50,
    UNet,
)

SECONDS, MIN_ROUNDS, MAX_ROUNDS = 2.0, 5, 25
TABLE_WIDTH = 200


@dataclass(frozen=True)
class Trial:
    """A network to run.

    Attributes:
        make: makes it, of stock layers.
        shape: of its input.
        depths: further numbers of residual joints to recompute through.
        layouts: of its input and weights.
        classifies: whether its loss is a classifier's; otherwise a sum of its output, weighted at random.
    """

    make: Callable[[], nn.Module]
    shape: Shape
    depths: tuple[int | None, ...] = ()
    layouts: tuple[str, ...] = ("contiguous",)
    classifies: bool = True


def _four_layers(shape: Shape) -> Trial:
    make = partial(FourLayers, shape[1])
    return Trial(make, shape, layouts=("contiguous", "channels_last"), classifies=False)


IMAGES = (8, 3, 224, 224)
OTHER_DEPTHS = (0, None)
NETWORKS = {
    "vgg16-bn": Trial(VGG16BN, IMAGES),
    "resnet50": Trial(ResNet50, IMAGES, OTHER_DEPTHS),
    "mobilenet-v2": Trial(MobileNetV2, IMAGES, OTHER_DEPTHS),
    "mobilenet-v2-silu": Trial(MobileNetV2SiLU, IMAGES, OTHER_DEPTHS),
    "densenet121": Trial(DenseNet121, IMAGES, OTHER_DEPTHS),
    "unet": Trial(UNet, (8, 3, 128, 128)),
    "four-layers-56": _four_layers((16, 64, 56, 56)),
    "four-layers-14": _four_layers((64, 64, 14, 14)),
}

SMALL_IMAGES = (4, 3, 64, 64)
SMALL = {
    "vgg16-bn": Trial(partial(VGG16BN, 4, 16, 10), SMALL_IMAGES),
    "resnet50": Trial(partial(ResNet50, 4, (2, 2, 1, 1), 10), SMALL_IMAGES, OTHER_DEPTHS),
    "mobilenet-v2": Trial(partial(MobileNetV2, nn.ReLU6, 0.25, 10), SMALL_IMAGES, OTHER_DEPTHS),
    "mobilenet-v2-silu": Trial(partial(MobileNetV2SiLU, 0.25, 10), SMALL_IMAGES, OTHER_DEPTHS),
    "densenet121": Trial(partial(DenseNet121, 4, (2, 2, 2, 2), 10), SMALL_IMAGES, OTHER_DEPTHS),
    "unet": Trial(partial(UNet, 4, 2), (4, 3, 32, 32)),
    "four-layers-56": _four_layers((4, 8, 14, 14)),
    "four-layers-14": _four_layers((4, 8, 7, 7)),
}
"""So small that the tests run them."""


def main(argv: list[str] | None = None) -> int:
    """Prints a table; returns 1 if a side gave wrong values, 2 if nothing could be run."""
    arguments = _parser().parse_args(argv)
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
    for name in arguments.networks:
        trial = (SMALL if arguments.small else NETWORKS)[name]
        for layout in trial.layouts:
            print(f"{name}, {layout}", file=sys.stderr)
            rows += _rows(name, trial, layout, arguments)
            if arguments.output is not None:
                arguments.output.write_text(report.as_json(machine, rows, _wrong(rows)))
    console = Console(width=max(TABLE_WIDTH, Console().width))
    console.print(", ".join(f"{key} {value}" for key, value in machine.items()), "\n", highlight=False)
    console.print(_table(rows))
    return 1 if _wrong(rows) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME", help=", ".join(NETWORKS))
    add("--device", choices=tuple(BACKENDS), default="cpu")
    add("--compile", action="store_true", help="also run torch.compile of the stock network")
    add("--no-time", action="store_true", help="measure bytes alone")
    add("--seconds", type=float, default=SECONDS, metavar="S", help="begin no further round of a network after this")
    add("--threads", type=int, metavar="N", help="threads of torch; its own choice by default")
    add("--memory", choices=("touched", "kept"), default="touched", help="as of benchmarks/run.py; concerns times")
    add("--small", action="store_true", help="tiny networks and images, to see that it works")
    add("--output", type=Path, metavar="FILE", help="write the machine and every row, network by network")
    return parser


def _rows(name: str, trial: Trial, layout: str, arguments: argparse.Namespace) -> list[report.Row]:
    """One row for each side of a network, stock first."""
    torch.manual_seed(0)
    device = arguments.device
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    stock = trial.make().train().to(device=device, memory_format=memory_format)  # type: ignore[call-overload]
    x = torch.randn(trial.shape, device=device).contiguous(memory_format=memory_format)
    target, criterion = _target(trial, stock, x)
    networks = sides(stock, trial.depths, arguments.compile)
    wrong = find_wrong(networks, x, target, criterion)

    optimizer = torch.optim.SGD(stock.parameters(), lr=1e-3)
    right = {side: network for side, network in networks.items() if side not in wrong}
    steps = {side: partial(_step, network, x, target, criterion, optimizer) for side, network in right.items()}
    measured = {side: _bytes(network, steps[side], x, optimizer, device) for side, network in right.items()}
    times = {} if arguments.no_time else _times(steps, arguments)
    facts = {
        "network": name,
        "layout": layout,
        "shape": list(trial.shape),
        "dtype": "float32",
        "device": device,
        "threads": torch.get_num_threads(),
        "memory": arguments.memory,
        "floor_bytes": floor_bytes(trial.make, trial.shape),
    }
    return [
        {**facts, "side": side, "wrong": wrong.get(side), **_compared(measured, side), **times.get(side, {})}
        for side in networks
    ]


def _target(trial: Trial, network: nn.Module, x: Tensor) -> tuple[Tensor, Criterion]:
    """Labels, or weights of the output's sum, and the loss that takes them."""
    with torch.no_grad():
        output = network.eval()(x)
    network.train()
    if trial.classifies:
        labels = torch.randint(output.shape[1], (len(output), *output.shape[2:]), device=output.device)
        return labels, F.cross_entropy
    return torch.randn_like(output), _weighted_mean


def _weighted_mean(output: Tensor, weights: Tensor) -> Tensor:
    return (output * weights).mean()


def _step(
    network: nn.Module, x: Tensor, target: Tensor, criterion: Criterion, optimizer: torch.optim.Optimizer
) -> None:
    optimizer.zero_grad(set_to_none=True)
    criterion(network(x), target).backward()
    optimizer.step()


def _bytes(
    network: nn.Module, step: Callable[[], None], x: Tensor, optimizer: torch.optim.Optimizer, device: str
) -> dict[str, int]:
    """Bytes kept and the peak, of a step that others have gone before."""
    step()
    optimizer.zero_grad(set_to_none=True)
    return {"kept": kept_by(partial(network, x), device), "peak": live_bytes(step, device).peak}


def _compared(measured: dict[str, dict[str, int]], side: str) -> dict[str, Any]:
    """The bytes of a side, also as shares of stock's."""
    if side not in measured:
        return {}
    ratios = {f"{what}_ratio": count / measured[STOCK][what] for what, count in measured[side].items()}
    return {f"{what}_bytes": count for what, count in measured[side].items()} | ratios


def _times(steps: Mapping[str, Callable[[], None]], arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    timed = {side: Side(step, host_counts=True) for side, step in steps.items()}
    clock = BACKENDS[arguments.device].clock()
    samples = measure(timed, arguments.seconds, MIN_ROUNDS, MAX_ROUNDS, clock=clock)
    return {
        side: {
            "step_ms": each.median_ms,
            "time_ratio": median_ratio(each, samples[STOCK]),
            "rounds": len(each.ms),
            "faults": each.median_faults,
        }
        for side, each in samples.items()
    }


def _wrong(rows: list[report.Row]) -> dict[str, str]:
    return {"/".join(row[key] for key in ("network", "layout", "side")): row["wrong"] for row in rows if row["wrong"]}


def _table(rows: list[report.Row]) -> Table:
    """One line for each row; ratios are shares of stock's."""
    result = Table(box=box.MARKDOWN)
    for column in ("network", "layout", "side"):
        result.add_column(column, overflow="fold")
    for column in ("kept MB", "x stock", "floor MB", "peak MB", "x stock", "step ms", "x stock"):
        result.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        cells = [f"{row['network']} {shape_text(tuple(row['shape']))}", row["layout"], row["side"]]
        if row["wrong"]:
            cells[-1] += f": WRONG, not measured: {row['wrong']}"
        numbers = [_mb(row, "kept_bytes"), _ratio(row, "kept_ratio"), _mb(row, "floor_bytes")]
        numbers += [_mb(row, "peak_bytes"), _ratio(row, "peak_ratio")]
        numbers += [f"{row['step_ms']:.1f}" if "step_ms" in row else "-", _ratio(row, "time_ratio")]
        result.add_row(*cells, *numbers)
    return result


def _mb(row: report.Row, key: str) -> str:
    return f"{row[key] / 1e6:.1f}" if key in row else "-"


def _ratio(row: report.Row, key: str) -> str:
    return f"{row[key]:.3f}" if key in row else "-"


if __name__ == "__main__":
    sys.exit(main())
