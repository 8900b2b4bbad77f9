"""Runs the demo: checks in float64, trains side by side, checks again, reports."""

from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from ..stock import FUSED, STOCK, Layers, bytes_kept_for_backward
from . import report
from .agreement import StepComparison, check_double
from .data import Digits, load_digits
from .drift import check_curves
from .training import Learner, Settings, build_network, nudge, steps_per_epoch, train_side_by_side

NUDGED = 3


def compare(settings: Settings, images: int | None, double_steps: int, threads: int | None, picture: Path) -> bool:
    """Trains the networks, then prints and plots the comparison.

    Args:
        settings: of the training.
        images: number of training images; None for all.
        double_steps: steps to compare in float64; at most one epoch.
        threads: number of threads for torch; None for its default.
        picture: the PNG to write.

    Returns:
        Whether the two trainings agree.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    data = load_digits(images, settings.seed)
    steps = steps_per_epoch(data, settings)
    if steps == 0:
        raise SystemExit(f"a batch of {settings.batch_size} needs as many images; there are {len(data.train_labels)}")
    double_steps = min(double_steps, steps)
    stock, fused, *nudged = learners = _learners(settings, steps * settings.epochs)
    single_steps = StepComparison(data, settings)

    print(_heading(data, settings, stock.network))
    print(report.HEADER)
    with tqdm(total=double_steps + steps * settings.epochs, unit="step", leave=False) as bar:
        bar.set_description("float64")
        double = check_double(data, settings, double_steps, bar.update)
        bar.set_description("training")

        def after_epoch(epoch: int) -> None:
            single_steps.compare(fused.network)
            bar.write(report.epoch_line(epoch, stock, fused, nudged, steps))

        train_side_by_side(learners, data, settings, bar.update, after_epoch)

    report.draw(learners, steps, picture)
    checks = [double, single_steps.check(), *check_curves(stock, fused, nudged)]
    print()
    for check in checks:
        print(check)
    print(report.step_times(stock, fused))
    print(report.memory_line(*(_bytes_kept(layers, data, settings) for layers in (STOCK, FUSED))))
    print(f"curves: {picture}")
    return all(check.passed for check in checks)


def _learners(settings: Settings, total_steps: int) -> list[Learner]:
    """Stock, fused, and several stock networks whose initial weights differ by a few roundings."""
    first = build_network(STOCK, settings)
    learners = [Learner("stock", first, settings, total_steps)]
    learners.append(Learner("fused", build_network(FUSED, settings, first), settings, total_steps))
    for seed in range(NUDGED):
        network = build_network(STOCK, settings, first)
        nudge(network, seed)
        learners.append(Learner("stock, nudged", network, settings, total_steps))
    return learners


def _bytes_kept(layers: Layers, data: Digits, settings: Settings) -> int:
    images = data.train_images[: settings.batch_size].contiguous(memory_format=settings.memory_format)
    return bytes_kept_for_backward(build_network(layers, settings), images)


def _heading(data: Digits, settings: Settings, network: nn.Module) -> str:
    shape = "x".join(str(length) for length in data.train_images.shape[1:])
    weights = sum(parameter.numel() for parameter in network.parameters())
    layout = "channels_last" if settings.channels_last else "contiguous"
    return (
        f"{len(data.train_labels)} digits of {shape} to train on, {len(data.test_labels)} to test; "
        f"residual network of {weights} weights, {settings.act}, {layout}, batch {settings.batch_size}, "
        f"dropout {settings.dropout:g}, {torch.get_num_threads()} threads\n"
        f"each batch trains stock, fused, and {NUDGED} more stock networks whose initial weights differ by roundings\n"
    )
