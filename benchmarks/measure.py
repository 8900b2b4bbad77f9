"""Times callables in turn, counts page faults and the bytes kept for backward."""

import gc
import math
import random
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

ROUND_SECONDS = 2e-3
LONG_SECONDS = 0.5


@dataclass(frozen=True)
class Side:
    """One of the callables that are compared.

    Attributes:
        call: what is timed.
        prepare: makes the argument of each call, untimed; without it the call takes none.
    """

    call: Callable[..., object]
    prepare: Callable[[], Any] | None = None


@dataclass
class Samples:
    """What the rounds gave for one side: milliseconds and minor page faults of one call."""

    ms: list[float] = field(default_factory=list)
    faults: list[float] = field(default_factory=list)

    @property
    def median_ms(self) -> float:
        return statistics.median(self.ms)

    @property
    def median_faults(self) -> float:
        return statistics.median(self.faults)


def median_ratio(numerator: Samples, denominator: Samples) -> float:
    """The median over the rounds of the ratio of the two times of one round."""
    return statistics.median(a / b for a, b in zip(numerator.ms, denominator.ms, strict=True))


def measure(
    sides: Mapping[str, Side], seconds: float, min_rounds: int, max_rounds: int, seed: int = 0
) -> dict[str, Samples]:
    """Times every side once in each round, in an order drawn anew for each round.

    Before it is timed a side is called once untimed, as the side before it left the caches full of its own
    tensors; calls above LONG_SECONDS are spared that. Short calls are repeated to fill ROUND_SECONDS.

    Args:
        sides: what to compare, by name.
        seconds: no round is begun after so many seconds, once there are min_rounds.
        min_rounds: rounds to measure at least.
        max_rounds: rounds to measure at most.
        seed: of the order.

    Returns:
        The samples of each side, round by round.
    """
    samples = {name: Samples() for name in sides}
    order = list(sides)
    turns = random.Random(seed)
    with _without_garbage_collection():
        plans = {name: _plan(side) for name, side in sides.items()}
        start = time.perf_counter()
        for finished in range(max_rounds):
            if finished >= min_rounds and time.perf_counter() - start > seconds:
                break
            turns.shuffle(order)
            for name in order:
                repeats, warm_up = plans[name]
                if warm_up:
                    _time(sides[name], 1)
                round_seconds, faults = _time(sides[name], repeats)
                samples[name].ms.append(1e3 * round_seconds / repeats)
                samples[name].faults.append(faults / repeats)
    return samples


def _plan(side: Side) -> tuple[int, bool]:
    """Calls in one round, enough for ROUND_SECONDS, and whether an untimed one goes before them."""
    _time(side, 1)
    seconds, _ = _time(side, 1)
    return max(1, math.ceil(ROUND_SECONDS / max(seconds, 1e-7))), seconds < LONG_SECONDS


def _time(side: Side, repeats: int) -> tuple[float, int]:
    """Seconds and minor page faults of so many calls."""
    if side.prepare is not None:
        return _time_prepared(side.call, side.prepare, repeats)
    call = side.call
    faults = _minor_faults()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return time.perf_counter() - start, _minor_faults() - faults


def _time_prepared(call: Callable[..., object], prepare: Callable[[], Any], repeats: int) -> tuple[float, int]:
    seconds, faults = 0.0, 0
    for _ in range(repeats):
        argument = prepare()
        before = _minor_faults()
        start = time.perf_counter()
        call(argument)
        seconds += time.perf_counter() - start
        faults += _minor_faults() - before
    return seconds, faults


def _minor_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
