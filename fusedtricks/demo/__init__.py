"""`python -m fusedtricks demo`: trains a network with stock and with fused layers, and compares the two."""

import argparse
import importlib.util
import sys
from pathlib import Path

from ..stock import ACTIVATIONS

EXTRAS = ("sklearn", "matplotlib", "tqdm")


def main(argv: list[str]) -> int:
    """Runs the demo.

    Args:
        argv: the options, without the program's name.

    Returns:
        The exit status: 0 if the trainings agree, 1 if they diverge, 2 if the demo could not run.
    """
    arguments = _parser().parse_args(argv)
    if any(importlib.util.find_spec(extra) is None for extra in EXTRAS):
        print(
            'The demo needs scikit-learn, matplotlib and tqdm: pip install "fusedtricks[demo]"',
            file=sys.stderr,
        )
        return 2

    from .compare import compare
    from .training import Settings

    settings = Settings(
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        act=arguments.act,
        dropout=arguments.dropout,
        channels_last=arguments.channels_last,
        seed=arguments.seed,
    )
    agreed = compare(settings, arguments.images, arguments.double_steps, arguments.threads, arguments.out)
    return 0 if agreed else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fusedtricks demo",
        description="Trains a small residual network on scikit-learn's handwritten digits, once with stock layers and "
        "once with fused ones, from the same initial weights. Compares losses, accuracies, step times and memory. "
        "Exits with 1 if the two diverge by more than rounding explains.",
    )
    parser.add_argument("--epochs", type=_positive, default=8)
    parser.add_argument("--batch-size", type=_positive, default=64)
    parser.add_argument("--images", type=_positive, help="train on only this many images")
    parser.add_argument("--act", choices=ACTIVATIONS, default="relu", help="the activation")
    parser.add_argument(
        "--dropout", type=_probability, default=0.0, metavar="P", help="drop features with this probability"
    )
    parser.add_argument("--channels-last", action="store_true", help="use the channels_last memory format")
    parser.add_argument("--threads", type=_positive, help="number of threads for torch")
    parser.add_argument("--seed", type=int, default=0, help="seed for the initial weights, batches and split")
    parser.add_argument(
        "--double-steps", type=_positive, default=20, metavar="N", help="number of steps to compare in float64"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("fusedtricks-demo.png"), metavar="PNG", help="where to draw the curves"
    )
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _probability(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 1)")
    return value
