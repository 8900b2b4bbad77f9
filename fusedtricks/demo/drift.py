"""Measures how far a float32 training with fused layers drifts from stock's, and sets the limit."""

import itertools
from collections.abc import Sequence

from .agreement import Check, worst
from .training import Learner

DRIFT_BOUND = 5.0
LOSS_FLOOR = 1e-4
GRADIENT_FLOOR = 3e-3
TINY = 1e-9


def check_curves(stock: Learner, fused: Learner, nudged: Sequence[Learner]) -> list[Check]:
    """Compares how far fused drifts from stock with how far stock drifts from itself, in losses and gradient norms.

    The drift at a step is the mean relative distance from stock's curve up to that step. The check divides fused's
    drift by the largest drift of the nudged stock networks and takes the largest quotient over all steps. A correct
    layer differs from stock by rounding only, like the nudged networks, so the quotient is about 1. A wrong layer
    stands out in the first steps, before rounding errors grow. There the nudged networks drift only by a few roundings
    or by one ReLU that switches, which is chance; so a floor is added to their drift.

    With dropout the networks draw different masks, so they differ by chance from the first step on. Then only the drift
    at the last step counts, which is a mean over the whole training.

    Measured over 8 seeds in both memory formats, 8 steps each, and in 3 whole trainings: fused reached 1.9, and a
    nudged network compared with two others 3.3. A layer whose result or gradient was 2 % too large in float32 reached
    20 or more in losses or gradient norms.
    """
    whole = stock.settings.dropout > 0
    losses = [learner.losses for learner in nudged]
    norms = [learner.gradient_norms for learner in nudged]
    return [
        _check("losses", stock.losses, fused.losses, losses, LOSS_FLOOR, whole),
        _check("gradient norms", stock.gradient_norms, fused.gradient_norms, norms, GRADIENT_FLOOR, whole),
    ]


def _check(
    name: str, stock: list[float], fused: list[float], nudged: list[list[float]], floor: float, whole: bool
) -> Check:
    drift = _drift(stock, fused)
    stock_drift = [worst(list(drifts)) for drifts in zip(*(_drift(stock, curve) for curve in nudged), strict=True)]
    multiples = [own / (other + floor) for own, other in zip(drift, stock_drift, strict=True)]
    what = f"float32: drift of the {name} from stock, as a multiple of stock's own drift ({stock_drift[-1]:.1e})"
    return Check(what, multiples[-1] if whole else worst(multiples), DRIFT_BOUND)


def _drift(left: list[float], right: list[float]) -> list[float]:
    """For each step, the mean relative difference up to that step."""
    distances = itertools.accumulate(abs(a - b) / max(abs(a), TINY) for a, b in zip(left, right, strict=True))
    return [distance / (step + 1) for step, distance in enumerate(distances)]
