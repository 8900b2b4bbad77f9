"""What the allocators say: the bytes that are alive while a model runs."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch.profiler import ProfilerActivity, profile, record_function

DEVICES = {"cpu", "cuda"}
"""Those whose allocators tell the profiler."""

_FORWARD = "fusedtricks.memory_report: forward"


@dataclass
class LiveBytes:
    """Bytes that are alive beyond those before, at the beginning and after each allocation and release.

    Attributes:
        forward: from the beginning to the end of the forward.
        backward: from there on.
    """

    forward: list[int] = field(default_factory=list)
    backward: list[int] = field(default_factory=list)


def why_not_measured(devices: Set[str]) -> str:
    """Why nothing can be measured on devices of these types, else ""."""
    if others := devices - DEVICES:
        return f"the allocator of {' and '.join(sorted(others))} does not report what it allocates"
    return "a profiler is running already" if torch.autograd._profiler_enabled() else ""


@contextmanager
def recording(devices: Set[str]) -> Iterator[LiveBytes]:
    """Fills what it gives when it is left. The forward has to run in `in_forward`."""
    live = LiveBytes()
    if "cuda" in devices:  # whose releases of earlier memory are reported too
        gc.collect()
        _free_workspaces()
    with _quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield live
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events = sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    end = max((event.end_ns() for event in events if event.name() == _FORWARD), default=0)
    changes = [e for e in events if e.name() == "[memory]" and e.device_type().name.lower() in devices]
    forward = [event.nbytes() for event in changes if event.start_ns() <= end]
    live.forward = [*accumulate(forward, initial=0)]
    live.backward = [*accumulate((event.nbytes() for event in changes[len(forward) :]), initial=live.forward[-1])]


@contextmanager
def in_forward() -> Iterator[None]:
    """Marks the forward in a recording."""
    with record_function(_FORWARD):
        yield
        gc.collect(1)  # what has become unreachable in cycles; looking at older objects takes long
        _free_workspaces()


def _free_workspaces() -> None:
    """Those of cuBLAS, which its first call allocates and nobody frees."""
    free = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)
    if free is not None and torch.cuda.is_initialized():
        free()


@contextmanager
def _quiet() -> Iterator[None]:
    """The profiler prints no lines of its own. It reads the setting when it is used first."""
    name = "KINETO_LOG_LEVEL"
    if name in os.environ:
        yield
        return
    os.environ[name] = "6"
    try:
        yield
    finally:
        os.environ.pop(name, None)
