"""Times callables turn by turn, and counts their page faults."""

import gc
import math
import random
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

ROUND_SECONDS = 2e-3
LONG_SECONDS = 0.5


@dataclass(frozen=True)
class Side:
    """One of the callables that are compared.

    Attributes:
        call: what is timed.
        prepare: makes the argument of each call, untimed; None if the call takes no argument.
        host_counts: on a GPU, whether to include the time that the device waits for the host, as a training step does.
    """

    call: Callable[..., object]
    prepare: Callable[[], Any] | None = None
    host_counts: bool = False

    def run(self) -> None:
        """Calls it once, untimed."""
        self.call() if self.prepare is None else self.call(self.prepare())


Turn = Callable[[], tuple[float, float]]
"""Times one side in one round: milliseconds and minor page faults of one call."""


class Clock(Protocol):
    """How the calls of a device are timed."""

    def ready(self, sides: Mapping[str, Side]) -> dict[str, Turn]:
        """Warms each side up, and returns what times it in a round."""

    def facts(self) -> dict[str, Any]:
        """Columns of the row that say how its sides were timed."""


@dataclass
class Samples:
    """Milliseconds and minor page faults of one call of a side, round by round."""

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


class HostClock:
    """Wall-clock time of calls that return when their work is done.

    Before it is timed, a side is called once untimed, because the side before it has left its own tensors in the
    caches; calls longer than LONG_SECONDS skip that. Short calls are repeated to fill ROUND_SECONDS.
    """

    def ready(self, sides: Mapping[str, Side]) -> dict[str, Turn]:
        return {name: _host_turn(side) for name, side in sides.items()}

    def facts(self) -> dict[str, Any]:
        return {}


def measure(
    sides: Mapping[str, Side],
    seconds: float,
    min_rounds: int,
    max_rounds: int,
    seed: int = 0,
    clock: Clock | None = None,
) -> dict[str, Samples]:
    """Times every side once in each round, in a new random order.

    Args:
        sides: what to compare, by name.
        seconds: after this time no further round begins, once there are min_rounds.
        min_rounds: rounds to measure at least.
        max_rounds: rounds to measure at most.
        seed: of the order.
        clock: the device's; by default the host's.

    Returns:
        The samples of each side, round by round.
    """
    samples = {name: Samples() for name in sides}
    order = list(sides)
    turns = random.Random(seed)
    with _without_garbage_collection():
        timed = (clock or HostClock()).ready(sides)
        start = time.perf_counter()
        for finished in range(max_rounds):
            if finished >= min_rounds and time.perf_counter() - start > seconds:
                break
            turns.shuffle(order)
            for name in order:
                ms, faults = timed[name]()
                samples[name].ms.append(ms)
                samples[name].faults.append(faults)
    return samples


def _host_turn(side: Side) -> Turn:
    repeats, warm_up = _plan(side)

    def turn() -> tuple[float, float]:
        if warm_up:
            _time(side, 1)
        seconds, faults = _time(side, repeats)
        return 1e3 * seconds / repeats, faults / repeats

    return turn


def _plan(side: Side) -> tuple[int, bool]:
    """How many calls fill ROUND_SECONDS, and whether an untimed call goes before them."""
    _time(side, 1)
    seconds, _ = _time(side, 1)
    return max(1, math.ceil(ROUND_SECONDS / max(seconds, 1e-7))), seconds < LONG_SECONDS


def _time(side: Side, repeats: int) -> tuple[float, int]:
    """Seconds and minor page faults of this many calls."""
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
def use_threads(count: int | None) -> Iterator[None]:
    """Runs torch on this many threads, unless None, and restores the number afterwards."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if count is not None:
            torch.set_num_threads(before)


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
