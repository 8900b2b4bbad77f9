"""Draws the bytes that are alive during a training step."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from .measuring import LiveBytes

_COLORS = {"stock": "#8c8c8c", "fused": "#3d8fd1", "recompute": "#e07b1a"}  # to be told apart on black and on white
_TEXT = "#808080"
_COLORED: tuple[Any, ...] = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")


def check(plot: Any) -> None:
    """TypeError unless something can be drawn to, ImportError if matplotlib is not there."""
    if not isinstance(plot, (str, os.PathLike)) and not hasattr(plot, "plot"):
        raise TypeError(
            f"memory_report(): argument 'plot' must be a path or a matplotlib Axes, not {type(plot).__name__}"
        )
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError("memory_report(): plot= needs matplotlib: pip install matplotlib") from error


def draw(steps: Mapping[str, LiveBytes], plot: Any) -> None:
    """Draws one line for each variant, to a path or to Axes that the caller has made."""
    if not isinstance(plot, (str, os.PathLike)):
        _draw(steps, plot)
        return
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(dict.fromkeys(_COLORED, _TEXT)):
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        _draw(steps, figure.subplots())
        figure.savefig(plot, dpi=150, transparent=True)


def _draw(steps: Mapping[str, LiveBytes], axes: Any) -> None:
    """The forward from 0 to 1, the backward from 1 to 2, by the number of allocations and releases.

    So the variants' ends of the forward are in one place.
    """
    for name, live in steps.items():
        positions = [*_spread(live.forward, 0), *_spread(live.backward, 1)]
        sizes = [size / 1e6 for size in (*live.forward, *live.backward)]
        label = f"{name}: {live.forward[-1] / 1e6:.1f} MB after the forward, {max(sizes):.1f} MB at most"
        axes.plot(positions, sizes, color=_COLORS[name], label=label, linewidth=1.6)
    axes.axvline(1, color=_TEXT, linestyle="--", linewidth=1)
    axes.set_xticks([0, 0.5, 1, 1.5, 2], ["", "forward", "", "backward", ""])
    axes.set(xlim=(0, 2), ylabel="MB allocated in the step")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False)


def _spread(values: list[int], start: int) -> list[float]:
    """Positions from `start` to `start + 1`, as many as there are values."""
    return [start + i / max(len(values) - 1, 1) for i in range(len(values))]
