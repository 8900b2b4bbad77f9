"""Prints and plots the demo's results."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from .agreement import epoch_means, worst
from .training import WARM_UP_STEPS, Learner

HEADER = (
    "epoch |  stock loss  fused loss   apart   (stock from stock) | stock accuracy  fused accuracy\n"
    "------+-------------------------------------------------------+-------------------------------"
)


def epoch_line(epoch: int, stock: Learner, fused: Learner, nudged: Sequence[Learner], steps: int) -> str:
    """One row of the table under HEADER: mean losses in this epoch, accuracies after it."""
    loss, fused_loss, *others = (epoch_means(each.losses, steps)[epoch] for each in (stock, fused, *nudged))
    farthest = worst([abs(other - loss) for other in others])
    return (
        f"{epoch + 1:5d} | {loss:11.4f} {fused_loss:11.4f} {abs(fused_loss - loss):8.1e}"
        f"       ({farthest:.1e})      |"
        f" {stock.accuracies[epoch]:14.1%} {fused.accuracies[epoch]:15.1%}"
    )


def step_times(stock: Learner, fused: Learner) -> str:
    """Medians of the step times of each network and of their ratio, without the first steps."""
    skip = min(WARM_UP_STEPS, len(stock.seconds) - 1)
    pairs = list(zip(stock.seconds[skip:], fused.seconds[skip:], strict=True))
    stock_ms, fused_ms = (1e3 * statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(left / right for left, right in pairs)
    return (
        f"training step (median of {len(pairs)}): stock {stock_ms:.1f} ms, fused {fused_ms:.1f} ms,"
        f" {ratio:.2f} times as fast"
    )


def memory_line(stock_bytes: int, fused_bytes: int) -> str:
    """The bytes that each network keeps for the backward of one batch."""
    return f"kept for backward by a batch: stock {stock_bytes / 1e6:.1f} MB, fused {fused_bytes / 1e6:.1f} MB"


def draw(learners: Sequence[Learner], steps: int, path: Path) -> None:
    """Plots the training losses (per step) and the accuracies (per epoch) to a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    styles = {
        "stock": ("black", "-", 2.5),
        "fused": ("tab:orange", "-", 1.2),
        "stock, nudged": ("gray", ":", 1.2),
    }
    figure, (losses, accuracies) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for learner in learners:
        color, style, width = styles[learner.name]
        positions = [(i + 1) / steps for i in range(len(learner.losses))]
        labels = losses.get_legend_handles_labels()[1]
        label = None if learner.name in labels else learner.name  # one entry for all nudged networks
        losses.plot(positions, learner.losses, style, color=color, linewidth=width, label=label)
        epochs = range(1, len(learner.accuracies) + 1)
        accuracies.plot(epochs, learner.accuracies, style, color=color, linewidth=width, marker="o", markersize=3)
    losses.set(xlabel="epoch", ylabel="training loss of each step", yscale="log")
    accuracies.set(xlabel="epoch", ylabel="accuracy on the test digits", ylim=(0, 1.02))
    losses.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
