"""The speed goals on a GPU, and which of them a run has met.

T is the time to read or write the tensor once at the bandwidth of a copy: half of what `Tensor.copy_` took in the same
rounds.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from rich import box
from rich.table import Table

from .case import Case
from .cuda_cases import CASES, CHANNELS_LAST, LARGE_SHAPES, layer_counts, tensor_bytes
from .report import Row, geometric_mean

FORWARD, BOTH = "forward", "forward+backward"
# What the 132 multiprocessors of an H200 can hold between two sweeps: 336 KB each, in registers and shared memory.
HELD_BYTES = 44e6
# In channels_last, neighbouring channels are read together: at least this many bytes of them.
SLAB_BYTES = 64
SMALL_BYTES, SMALL_US = 30e6, 3.0
SUM_MS = 12.0


@dataclass(frozen=True)
class Verdict:
    """A goal, what was measured, and whether the goal is met."""

    what: str
    case: str
    setting: tuple[str, str, str]
    measured: str
    goal: str
    met: bool


def target_cases() -> list[Case]:
    """The cases of the registry that a goal is set for."""
    layers = layer_counts()
    return [
        case
        for case in CASES
        if (case.op == "batch_norm_relu" and case.name.startswith("resnet50-256x"))
        or ((case.op, case.name) in layers and case.direction == BOTH and _is_typical(case.dtype_name, case.layout))
        or (case.op in ("dropout", "leaky_relu") and case.name in LARGE_SHAPES and case.direction == FORWARD)
        or (case.op == "end_to_end" and case.name == "resnet50")
    ]


def target_table(rows: Iterable[Row]) -> Table:
    """A line for each goal that a row counts for."""
    result = Table(box=box.MARKDOWN)
    for name in ("goal", "case", "direction", "dtype", "layout"):
        result.add_column(name, overflow="fold")
    for name in ("measured", "set", "met"):
        result.add_column(name, justify="right", no_wrap=True)
    for each in verdicts(rows):
        result.add_row(each.what, each.case, *each.setting, each.measured, each.goal, "yes" if each.met else "NO")
    return result


def verdicts(rows: Iterable[Row]) -> list[Verdict]:
    """A verdict for each goal that a row counts for, single shapes first."""
    rows = list(rows)
    return [*_batch_norm(rows), *_elementwise(rows), *_layers(rows), *_networks(rows)]


def _is_typical(dtype: str, layout: str) -> bool:
    return (dtype, layout) == ("bfloat16", CHANNELS_LAST)


def _key(row: Row) -> tuple[str, ...]:
    return row["op"], row["case"], row["dtype"], row["layout"]


def _batch_norm(rows: list[Row]) -> Iterator[Verdict]:
    """BatchNorm+ReLU. The time of backward is that of forward+backward less that of forward."""
    chosen = [row for row in rows if row["op"] == "batch_norm_relu" and row["case"].startswith("resnet50-256x")]
    forward_ms = {_key(row): row["fused_ms"] for row in chosen if row["direction"] == FORWARD}
    for row in chosen:
        if row["direction"] == FORWARD:
            yield from _in_tensors(row, FORWARD, row["fused_ms"], _forward_goal(row))
        elif (ms := forward_ms.get(_key(row))) is not None:
            yield from _in_tensors(row, "backward", row["fused_ms"] - ms, _backward_goal(row))


def _forward_goal(row: Row) -> tuple[str, float] | None:
    if _is_held(row, tensors=1):
        extra = SMALL_US / _tensor_us(row)
        small = tensor_bytes(row["shape"], row["dtype"]) <= SMALL_BYTES
        return "slab on chip", 1.3 * 2 + extra if small else 1.2 * 2
    return ("two sweeps", 1.15 * 3) if _exceeds_cache(row) else None


def _backward_goal(row: Row) -> tuple[str, float] | None:
    if _is_held(row, tensors=2):
        return "slab on chip", 1.25 * 3
    return ("two sweeps", 1.15 * 5) if _exceeds_cache(row) else None


def _is_held(row: Row, tensors: int) -> bool:
    """Whether the slabs of this many tensors stay on chip between the sweeps.

    A slab is the part of a tensor that belongs to the channels that are processed together.
    """
    samples, channels, *positions = row["shape"]
    of_channel = tensor_bytes([samples, *positions], row["dtype"])
    if row["layout"] == CHANNELS_LAST:
        of_channel *= min(channels, SLAB_BYTES // tensor_bytes([], row["dtype"]))
    return row["path"] != "two" and tensors * of_channel <= HELD_BYTES


def _exceeds_cache(row: Row) -> bool:
    return tensor_bytes(row["shape"], row["dtype"]) > row["l2_bytes"]


def _tensor_us(row: Row) -> float:
    return 1e3 * row["copy_ms"] / 2


def _in_tensors(row: Row, direction: str, ms: float, goal: tuple[str, float] | None) -> Iterator[Verdict]:
    if goal is not None:
        what, most = goal
        measured = 1e3 * ms / _tensor_us(row)
        setting = direction, row["dtype"], row["layout"]
        what = f"{row['op']}, {what}" if what else row["op"]
        yield Verdict(what, row["case"], setting, f"{measured:.2f} T", f"≤ {most:.2f} T", measured <= most)


def _elementwise(rows: list[Row]) -> Iterator[Verdict]:
    for row in rows:
        if row["op"] in ("dropout", "leaky_relu") and row["direction"] == FORWARD and len(row["shape"]) == 4:
            most = 1.2 * 2 if row["layout"] == CHANNELS_LAST else 1.1 * 2
            yield from _in_tensors(row, FORWARD, row["fused_ms"], ("", most) if _exceeds_cache(row) else None)


def _layers(rows: list[Row]) -> Iterator[Verdict]:
    """All BatchNorm layers of ResNet-50: the sum of their times, and the ratios by shape."""
    counts = layer_counts()
    found = [
        row
        for row in rows
        if (row["op"], row["case"]) in counts and row["direction"] == BOTH and _is_typical(row["dtype"], row["layout"])
    ]
    if not found:
        return
    times = [counts[row["op"], row["case"]] for row in found]
    layers, setting = f"{sum(times)} of {sum(counts.values())} layers", (BOTH, "bfloat16", CHANNELS_LAST)
    complete = len(found) == len(counts)
    fused, eager = (
        sum(n * row[side] for n, row in zip(times, found, strict=True)) for side in ("fused_ms", "eager_ms")
    )
    measured = f"{fused:.2f} ms, eager {eager:.2f}"
    yield Verdict(
        "BatchNorms of ResNet-50, summed", layers, setting, measured, f"≤ {SUM_MS:g} ms", complete and fused <= SUM_MS
    )
    shapes = f"{len(found)} of {len(counts)} shapes"
    for what, ratio, mean, least in (("x eager", "ratio_eager", 1.7, 1.1), ("x compiled", "ratio_compile", 1.1, 0.95)):
        ratios = [row[ratio] for row in found if row[ratio] is not None]
        if ratios:
            met = len(ratios) == len(counts) and geometric_mean(ratios) >= mean and min(ratios) >= least
            measured = f"{geometric_mean(ratios):.2f}, least {min(ratios):.2f}"
            goal = f"≥ {mean}, least ≥ {least}"
            yield Verdict(f"{what}, geometric mean", shapes, setting, measured, goal, met)


def _networks(rows: list[Row]) -> Iterator[Verdict]:
    for row in rows:
        if row["op"] == "end_to_end" and row["case"] == "resnet50":
            setting = row["direction"], row["dtype"], row["layout"]
            for what, ratio, goal in (("x eager", "ratio_eager", 1.15), ("x compiled", "ratio_compile", 1.0)):
                if row[ratio] is not None:
                    met = row[ratio] >= goal
                    yield Verdict(what, row["case"], setting, f"{row[ratio]:.2f}", f"≥ {goal:.2f}", met)
