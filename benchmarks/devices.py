"""What the runner asks of a device: cases, goals, a clock."""

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
        quick: patterns of the cases that --quick leaves.
        target_cases: the cases that a goal is set for.
        target_table: rows -> the goals, and whether they are met.
        obstacle: why nothing can be timed, "" where it can.
        machine: what else there is to know about the machine.
        clock: makes the clock.
        peaks: the most memory that each side holds, by the keys of a row.
        failures: what keeps a single case from being timed.
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
        # The errors of kernels, of compilers and of the allocator: machines with a GPU are lent for minutes.
        failures=(Mismatch, RuntimeError),
    ),
}
