"""The speed goals on a CPU, and which of them a run has met."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

from rich import box
from rich.table import Table

from .case import Case
from .cases import CASES
from .networks import NETWORKS
from .overhead import ACTIVATIONS, OP
from .report import Row, geometric_mean
from .shapes import LARGE_SHAPES, LARGEST_SHAPES, RESNET50_SHAPES, STEM_SHAPES, TRANSFORMER_SHAPES

FORWARD, BOTH = "forward", "forward+backward"


@dataclass(frozen=True)
class Target:
    """A goal for some cases.

    Attributes:
        cases: names of the cases; each of them has to reach the goal, unless `least` is given.
        eager: how many times as fast as eager, at least.
        share: instead of `eager`, the time as a share of eager's, at most.
        copies: `Tensor.copy_`s of the same tensor, at most.
        least: if given, the geometric mean of the cases has to reach `eager`, and each case this.
    """

    op: str
    cases: tuple[str, ...]
    direction: str
    dtype: str
    layout: str
    eager: float = 0.0
    share: float | None = None
    copies: float | None = None
    least: float | None = None

    @property
    def ratio(self) -> float:
        """How many times as fast as eager, at least."""
        return self.eager if self.share is None else 1 / self.share

    def includes(self, row: Row) -> bool:
        """Whether the row counts for this goal."""
        wanted = (self.op, self.direction, self.dtype, self.layout)
        return (row["op"], row["direction"], row["dtype"], row["layout"]) == wanted and row["case"] in self.cases


CONTIGUOUS, CHANNELS_LAST = "contiguous", "channels_last"
IMAGES = ("resnet50-32x64x56x56", "cifar-128x64x32x32")
LARGE = tuple(LARGE_SHAPES)
OUT_OF_CACHE = tuple(LARGEST_SHAPES)
STEM = tuple(STEM_SHAPES)
RESNET50 = tuple(RESNET50_SHAPES)

# op -> its time as a share of stock's, at most: forward, and forward with backward.
OVERHEAD_SHARES: dict[str, tuple[float, float]] = {
    "batch_norm_relu": (0.45, 0.6),
    "batch_norm_add_relu": (0.45, 0.6),
    **dict.fromkeys(ACTIVATIONS, (1.1, 1.1)),
    "dropout": (0.5, 0.5),
    "act_dropout": (0.45, 0.45),
}

TARGETS = [
    Target("batch_norm_relu", IMAGES, BOTH, "float32", CONTIGUOUS, eager=3.0, copies=4.5),
    Target("batch_norm_relu", IMAGES, BOTH, "float32", CHANNELS_LAST, eager=2.2, copies=6.0),
    Target("batch_norm_relu", LARGE, FORWARD, "float32", CONTIGUOUS, eager=4.0, copies=1.5),
    *(
        Target("batch_norm_relu", RESNET50, BOTH, dtype, layout, eager=goal, least=1.2)
        for (dtype, goal), layout in product((("float32", 2.3), ("bfloat16", 1.8)), (CONTIGUOUS, CHANNELS_LAST))
    ),
    *(
        Target("batch_norm_add_relu", RESNET50, BOTH, dtype, layout, eager=2.5, least=0.0)
        for dtype, layout in product(("float32", "bfloat16"), (CONTIGUOUS, CHANNELS_LAST))
    ),
    *(
        Target("batch_norm_relu_max_pool", STEM, BOTH, "float32", layout, eager=2.5)
        for layout in (CONTIGUOUS, CHANNELS_LAST)
    ),
    Target("dropout", (*LARGE, "mlp-1024x4096"), FORWARD, "float32", CONTIGUOUS, eager=40.0, copies=1.7),
    Target("leaky_relu", OUT_OF_CACHE, FORWARD, "float32", CONTIGUOUS, eager=1.0, copies=1.2),
    Target("leaky_relu", OUT_OF_CACHE, BOTH, "float32", CONTIGUOUS, eager=1.2, copies=2.8),
    *(
        Target("fractional_max_pool2d_relu", (*LARGE, "cifar-128x64x32x32"), BOTH, "float32", layout, eager=1.5)
        for layout in (CONTIGUOUS, CHANNELS_LAST)
    ),
    Target("fractional_max_pool3d_relu", ("video-4x16x16x56x56",), BOTH, "float32", CONTIGUOUS, eager=1.5),
    Target("batch_norm_relu", ("tiny-64x128",), BOTH, "float32", CONTIGUOUS, eager=1.0),
    Target("dropout", ("tiny-64x128",), BOTH, "float32", CONTIGUOUS, eager=1.0),
    Target("drop_connect", ("linear-64x1024",), BOTH, "float32", CONTIGUOUS, eager=5.0),
    Target("stochastic_depth_skip", tuple(TRANSFORMER_SHAPES), BOTH, "float32", CONTIGUOUS, eager=1.3),
    *(
        Target(f"{act}_dropout_bias", (*LARGE, "mlp-256x4096"), BOTH, "float32", CONTIGUOUS, eager=15.0)
        for act in ("relu", "gelu")
    ),
    Target("dropout2d", LARGE, BOTH, "float32", CONTIGUOUS, eager=1.5),
    Target("drop_path_add", ("vit-64x197x384",), BOTH, "float32", CONTIGUOUS, eager=1.5),
    *(
        Target("end_to_end", (network,), "training step", "float32", layout, eager=goal)
        for network, goal in (("resnet50", 1.15), ("mobilenetv2", 1.2), ("mlp", 1.05))
        for layout in (CONTIGUOUS, CHANNELS_LAST)
        if layout == CONTIGUOUS or len(NETWORKS[network][1]) == 4
    ),
    *(
        Target(OP, (name,), direction, "float32", CONTIGUOUS, share=share)
        for name, shares in OVERHEAD_SHARES.items()
        for direction, share in zip((FORWARD, BOTH), shares, strict=True)
    ),
]


def target_cases() -> list[Case]:
    """The cases of the registry that a goal is set for."""
    return [case for case in CASES if any(target.includes(_key(case)) for target in TARGETS)]


def _key(case: Case) -> Row:
    return {
        "op": case.op,
        "case": case.name,
        "direction": case.direction,
        "dtype": case.dtype_name,
        "layout": case.layout,
    }


def target_table(rows: Iterable[Row]) -> Table:
    """A line for each goal, or for each case that has to reach it: what was measured, the goal, whether it is met."""
    rows = list(rows)
    result = Table(box=box.MARKDOWN)
    for name in ("op", "case", "direction", "dtype", "layout"):
        result.add_column(name, overflow="fold")
    for name in ("x eager", "goal", "x copy", "goal", "met"):
        result.add_column(name, justify="right", no_wrap=True)
    for target in TARGETS:
        found = [row for row in rows if target.includes(row)]
        if target.least is None:
            for row in found:
                _add(result, target, row["case"], [row])
        elif found:
            _add(result, target, f"{len(found)} shapes of ResNet-50, geometric mean", found)
    return result


def _add(table: Table, target: Target, case: str, rows: list[Row]) -> None:
    ratios = [row["ratio_eager"] for row in rows]
    mean = geometric_mean(ratios)
    met = mean >= target.ratio
    measured, goal, copies, copies_goal = f"{mean:.2f}", f"≥ {target.eager}", "", ""
    if target.share is not None:
        measured += f" ({1 / mean:.2f} of the time)"
        goal = f"≤ {target.share} of the time"
    if target.least is not None:
        met = met and min(ratios) >= target.least and len(rows) == len(target.cases)
        measured += f", least {min(ratios):.2f}"
        goal += f", least ≥ {target.least}" if target.least else ""
    if rows[0]["ratio_copy"] is not None and target.least is None:
        copies = f"{rows[0]['ratio_copy']:.2f}"
    if target.copies is not None:
        met = met and rows[0]["ratio_copy"] <= target.copies
        copies_goal = f"≤ {target.copies}"
    setting = (target.direction, target.dtype, target.layout)
    table.add_row(target.op, case, *setting, measured, goal, copies, copies_goal, "yes" if met else "NO")
