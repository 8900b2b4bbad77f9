"""What the runner needs to know about each device: its cases, goals and clock."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from . import cases, cuda_cases, cuda_clock, cuda_targets, targets
from .case import Case
from .check import Mismatch
from .measure import Clock, HostClock, Side
from .report import Row
from .workload import Workload


@dataclass(frozen=True)
class Backend:
    """A device that cases can be timed on.

    Attributes:
        cases: the registry.
        quick: patterns of the cases that run under --quick.
        target_cases: the cases that a goal is set for.
        target_table: rows -> the goals, and whether they are met.
        obstacle: says why nothing can be timed, or "" if it can.
        machine: further facts about the machine.
        clock: makes the clock.
        peaks: the peak memory of each side, as columns of a row.
        failures: exceptions that stop one case and not the run.
    """

    cases: list[Case]
    quick: tuple[str, ...]
    target_cases: Callable[[], list[Case]]
    target_table: Callable[[Iterable[Row]], Table]
    obstacle: Callable[[], str]
    machine: Callable[[], dict[str, Any]]
    clock: Callable[[], Clock]
    peaks: Callable[[Workload, Mapping[str, Side]], dict[str, Any]]
    failures: tuple[type[Exception], ...]


BACKENDS = {
    "cpu": Backend(
        cases=cases.CASES,
        quick=cases.QUICK,
        target_cases=targets.target_cases,
        target_table=targets.target_table,
        obstacle=lambda: "",
        machine=dict,
        clock=HostClock,
        peaks=lambda workload, sides: {},
        failures=(Mismatch,),
    ),
    "cuda": Backend(
        cases=cuda_cases.CASES,
        quick=cuda_cases.QUICK,
        target_cases=cuda_targets.target_cases,
        target_table=cuda_targets.target_table,
        obstacle=cuda_clock.obstacle,
        machine=cuda_clock.machine,
        clock=cuda_clock.CudaClock,
        peaks=cuda_clock.peaks,
        # RuntimeError: kernels, compilers and the allocator raise it, and GPU time is too short to lose a run to it.
        failures=(Mismatch, RuntimeError),
    ),
}
