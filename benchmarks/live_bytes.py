"""How many bytes of tensors are alive while something runs, from what the allocators report."""

import gc
import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

Result = TypeVar("Result")

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # otherwise the profiler prints lines of its own


@dataclass(frozen=True)
class LiveBytes:
    """Bytes above those that were alive before a call.

    Attributes:
        at_end: when it has returned, its result included.
        peak: the most at any time.
    """

    at_end: int
    peak: int


def kept_by(forward: Callable[[], Tensor], device: str = "cpu") -> int:
    """Bytes that a forward leaves behind for its backward: alive at its end beside its result."""
    result, live = _watched(forward, device)
    return live.at_end - result.untyped_storage().nbytes()


def live_bytes(call: Callable[[], object], device: str = "cpu") -> LiveBytes:
    """Bytes alive during a call, and at its end. It must not free what was there before."""
    return _watched(call, device)[1]


def _watched(call: Callable[[], Result], device: str) -> tuple[Result, LiveBytes]:
    return (_on_cuda if device == "cuda" else _on_cpu)(call)


def _on_cpu(call: Callable[[], Result]) -> tuple[Result, LiveBytes]:
    """From the profiler's records: every allocation, and every release of what was allocated since it began."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
        gc.collect()
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    alive = list(accumulate(changes, initial=0))
    return result, LiveBytes(at_end=alive[-1], peak=max(alive))


def _on_cuda(call: Callable[[], Result]) -> tuple[Result, LiveBytes]:
    """From the caching allocator's own counts."""
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = call()
    torch.cuda.synchronize()
    gc.collect()
    at_end = torch.cuda.memory_allocated() - before
    return result, LiveBytes(at_end=at_end, peak=torch.cuda.max_memory_allocated() - before)
