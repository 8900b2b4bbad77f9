"""Times calls on a CUDA device, which works on after the call has returned."""

import math
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from fusedtricks import _build_info

from .measure import Side, Turn
from .workload import Workload

FLUSH_BYTES = 256 * 2**20
WARM_UPS = 3
ROUND_MS, MOST_REPEATS = 5.0, 10
# If the fastest side of an op takes less, all are replayed from CUDA graphs, as the host could not keep up.
SHORT_MS = 0.1
# Cycles in a second, of a clock that no GPU exceeds.
CYCLES = 3e9


def obstacle() -> str:
    """Why nothing can be timed on CUDA, in one sentence, or "" if it can."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no CUDA device"
    if "cuda" not in _build_info.backends:
        return "fusedtricks is built without CUDA kernels; `python -m fusedtricks info` says why"
    return ""


class CudaClock:
    """Device time by CUDA events, of calls whose inputs have to be read from memory.

    Before each timed call a buffer of several times the L2 cache is written, which evicts the op's tensors, and read,
    which writes the buffer's own modified lines back. Ops that take less than SHORT_MS are captured in CUDA graphs, and
    the replay is timed; if one side cannot be captured, none is. Otherwise the device is kept busy until the host has
    launched all calls of a turn. A training step is launched as a training loop does it.
    """

    def __init__(self) -> None:
        self._l2_bytes = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
        flushed = max(FLUSH_BYTES, 4 * self._l2_bytes)
        self._flushed = torch.empty(flushed // 4, dtype=torch.float32, device="cuda")
        self._launch = ""

    def ready(self, sides: Mapping[str, Side]) -> dict[str, Turn]:
        torch.backends.cudnn.benchmark = any(side.host_counts for side in sides.values())
        for side in sides.values():
            for _ in range(WARM_UPS):
                side.run()
        step_ms = {name: self._probe(side) for name, side in sides.items()}
        graphs: dict[str, Callable[[], object]] = {}
        self._launch = "direct"
        if not any(side.host_counts for side in sides.values()) and _fastest(step_ms) < SHORT_MS:
            graphs, self._launch = _capture_all(sides)
        return {
            name: partial(self._turn, side, graphs.get(name), max(1, min(MOST_REPEATS, int(ROUND_MS / step_ms[name]))))
            for name, side in sides.items()
        }

    def facts(self) -> dict[str, Any]:
        return {"launch": self._launch, "l2_bytes": self._l2_bytes, "path": path()}

    def launch_us(self) -> float:
        """What the clock shows for a copy of one number: times near it mean little."""
        source, target = torch.ones(1, device="cuda"), torch.zeros(1, device="cuda")
        turn = self.ready({"copy": Side(partial(target.copy_, source))})["copy"]
        return 1e3 * statistics.median(turn()[0] for _ in range(10))

    def _turn(self, side: Side, replay: Callable[[], object] | None, repeats: int) -> tuple[float, float]:
        """The median of the repeats in milliseconds; no page faults are counted."""
        if replay is not None:
            return statistics.median(self._time(Side(replay), repeats)), 0.0
        start = time.perf_counter()
        side.run()
        if not side.host_counts:
            _hold_back((repeats + 1) * (time.perf_counter() - start))
        return statistics.median(self._time(side, repeats)), 0.0

    def _probe(self, side: Side) -> float:
        """Roughly the milliseconds of device time of one call."""
        start = time.perf_counter()
        side.run()
        _hold_back(WARM_UPS * (time.perf_counter() - start))
        return max(1e-4, statistics.median(self._time(side, WARM_UPS)))

    def _time(self, side: Side, repeats: int) -> list[float]:
        """Milliseconds of each of this many calls; the host does not wait between them."""
        events = []
        for _ in range(repeats):
            arguments = () if side.prepare is None else (side.prepare(),)
            self._flush()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            side.call(*arguments)
            end.record()
            events.append((start, end))
        torch.cuda.synchronize()
        return [start.elapsed_time(end) for start, end in events]

    def _flush(self) -> None:
        self._flushed.fill_(1.0)
        self._flushed.amax()


def _fastest(step_ms: Mapping[str, float]) -> float:
    return min((ms for name, ms in step_ms.items() if name != "copy"), default=0.0)


def _hold_back(seconds: float) -> None:
    """Keeps the device busy for at least this long (at most a second), so that the host gets ahead of it."""
    torch.cuda._sleep(math.ceil(min(seconds, 1.0) * CYCLES))


def _capture_all(sides: Mapping[str, Side]) -> tuple[dict[str, Callable[[], object]], str]:
    """The replay of each side and "graph"; or no replays and "direct" with the reason."""
    replays: dict[str, Callable[[], object]] = {}
    stream = torch.cuda.current_stream()
    for name, side in sides.items():
        if side.prepare is not None:
            return {}, f"direct: {name} takes a new argument each time"
        try:
            replays[name] = _capture(side.call)
        except RuntimeError as error:
            torch.cuda.set_stream(stream)
            torch.cuda.synchronize()
            reason = str(error).strip().partition("\n")[0]
            return {}, f"direct: {name} cannot be captured: {reason}"
    return replays, "graph"


def _capture(call: Callable[[], object]) -> Callable[[], object]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        call()
    graph.replay()
    torch.cuda.synchronize()
    return graph.replay


def peaks(workload: Workload, sides: Mapping[str, Side]) -> dict[str, Any]:
    """The peak memory of one call of each side, without what the other sides hold."""
    result = {}
    for name, side in sides.items():
        if name != "copy":
            at_rest = workload.bytes_at_rest()
            argument = () if side.prepare is None else (side.prepare(),)
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            side.call(*argument)
            torch.cuda.synchronize()
            result[f"peak_bytes_{name}"] = at_rest + torch.cuda.max_memory_allocated() - before
    return result


def path() -> str:
    """Which kernels FUSEDTRICKS_CUDA_PATH asks for."""
    return os.environ.get("FUSEDTRICKS_CUDA_PATH", "auto")


def machine() -> dict[str, Any]:
    """The device, its driver and libraries."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "device": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
        "architectures": list(_build_info.cuda_architectures),
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "path": path(),
        "launch_us": round(CudaClock().launch_us(), 2),
    }


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return lines[0] if lines else None
