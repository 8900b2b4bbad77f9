"""`memory_report`: runs the variants of a model and tells what each keeps for the backward."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves, tree_map

from .. import _C
from . import plot as plots
from .accounts import Account, account_of, keys_of
from .measuring import LiveBytes, in_forward, recording, why_not_measured
from .recompute import recompute
from .report import MemoryReport
from .saves import Depth, Watcher, storages_of
from .variants import NAMES, check_copyable, variant


def memory_report(
    model: nn.Module,
    *inputs: Any,
    depth: int | None = 1,
    plot: Any = None,
    progress: bool = True,
    **keyword_inputs: Any,
) -> MemoryReport:
    """Tells what a model keeps for the backward: with stock layers, fused, and within `fusedtricks.recompute()`.

    Runs one forward of each and notes every tensor that is saved: which modules keep it, what it is, its bytes, and why
    it cannot be recomputed. `print` the report for a table. With inputs on the meta device nothing is computed and
    next to nothing allocated, so that a model and a batch of any size can be looked at:

        print(fusedtricks.memory_report(model, torch.empty(256, 3, 224, 224, device="meta")))

    Real inputs are run on their device. Then `measured` in each account is what the allocator says, to compare, and
    `plot` draws the bytes over a training step. What is kept by the hooks of others within the model
    (`torch.utils.checkpoint`, `save_on_cpu`) is in `measured` alone.

    The model is run in the mode that it is in, as a copy: it, its buffers and gradients, the inputs, and torch's random
    state (of the CPU and CUDA devices in use) stay as they are. Autocast applies if it is on. Modules are told by the
    innermost forward that runs; chains of fused layers run in the forward of the module that calls them.

    Args:
        model: any model, stock or fused; what `fuse(..., recompute=...)` has set is left aside.
        inputs: its arguments: tensors, nested in lists, tuples and dictionaries, and anything else.
        depth: that of `recompute`.
        plot: a path or a matplotlib Axes to draw to: the bytes allocated in one step, a forward and the backward of the
            sum of the outputs.
        progress: show a bar on a terminal if it takes longer than a second and tqdm is there.
        keyword_inputs: keyword arguments for the model.

    Raises:
        TypeError: `model` is not a module; `depth` or `plot` is of another type.
        ValueError: only some of the tensors in the inputs are on the meta device; `plot` is given, but they are;
            `depth` is negative; `model` has lazy modules that have not run yet, or cannot become stock (`to_stock`).
        RuntimeError: hooks on saved tensors are active around the call; `plot` is given, but the device's allocator
            does not report, or a profiler is running.
        ImportError: `plot` is given, but matplotlib is not there.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"memory_report(): argument 'model' must be torch.nn.Module, not {type(model).__name__}")
    recompute(depth=depth)  # raises if that is wrong
    if not _C.may_recompute():
        raise RuntimeError("memory_report(): hooks on saved tensors are active here, which see what is to be reported")
    check_copyable(model)
    given = _Inputs(inputs, keyword_inputs)
    runs = _Runs(model, given, _is_on_meta(model, given), depth, plot)
    results = {name: runs.run(name) for name in _with_progress(NAMES, progress and not runs.on_meta)}
    if plot is not None:
        plots.draw({name: result.live for name, result in results.items()}, plot)
    return MemoryReport(**{name: result.account for name, result in results.items()}, depth=depth)


class _Inputs(NamedTuple):
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]

    def tensors(self) -> list[Tensor]:
        return _tensors(tuple(self))

    def named(self) -> list[tuple[str, Tensor]]:
        """The same with names such as "inputs[0]" and "mask"."""
        arguments, keywords = (tree_flatten_with_path(part)[0] for part in self)
        named = [(f"inputs{keystr(path)}", leaf) for path, leaf in arguments]
        named += [(f"{getattr(path[0], 'key', '')}{keystr(path[1:])}", leaf) for path, leaf in keywords]
        return [(name, leaf) for name, leaf in named if isinstance(leaf, Tensor)]

    def copies(self) -> _Inputs:
        """The same with other tensors, one for each."""
        copied: dict[int, Tensor] = {}

        def copy(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            if id(leaf) not in copied:
                copied[id(leaf)] = _copy(leaf)
            return copied[id(leaf)]

        return _Inputs(*tree_map(copy, tuple(self)))


def _copy(tensor: Tensor) -> Tensor:
    if tensor.is_leaf:
        return tensor.detach().clone().requires_grad_(tensor.requires_grad)
    return tensor.detach().requires_grad_(tensor.requires_grad).clone()  # no leaf either: it may be changed in place


class _Result(NamedTuple):
    account: Account
    live: LiveBytes


class _Runs:
    """Runs of a model's variants on the same inputs, from the same random state."""

    def __init__(self, model: nn.Module, given: _Inputs, on_meta: bool, depth: int | None, plot: Any) -> None:
        self.on_meta = on_meta
        self._model, self._given, self._depth = model, given, depth
        self._devices = {t.device for t in (*given.tensors(), *model.parameters(), *model.buffers())}
        self._types = {device.type for device in self._devices}
        why_not = why_not_measured(self._types)
        self._measures, self._steps = not on_meta and not why_not, plot is not None
        if plot is None:
            return
        if on_meta:
            raise ValueError("memory_report(): argument 'plot' needs a real step, not inputs on the meta device")
        if why_not:
            raise RuntimeError(f"memory_report(): there is nothing to plot: {why_not}")
        plots.check(plot)

    def run(self, name: str) -> _Result:
        depth: Depth = self._depth if name == "recompute" else False
        with self._undisturbed():
            model, given = variant(self._model, name, self.on_meta), self._given.copies()
            if not self._measures:
                return _Result(_run(model, given, depth).account, LiveBytes())
            with recording(self._types) as live:
                with in_forward():
                    ran = _run(model, given, depth)
                if self._steps:
                    _backward(ran.outputs)
            return _Result(replace(ran.account, measured=live.forward[-1] - ran.loose), live)

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Gradients are recorded, whatever is around; nothing remains of it."""
        cuda = [device for device in self._devices if device.type == "cuda"]
        with torch.random.fork_rng(cuda), torch.inference_mode(False), torch.enable_grad():
            yield


class _Ran(NamedTuple):
    outputs: Any
    account: Account
    loose: int  # bytes of outputs that are not kept for the backward


def _run(model: nn.Module, given: _Inputs, depth: Depth) -> _Ran:
    watcher = Watcher(model, depth)
    with watcher:
        outputs = model(*given.arguments, **given.keywords)
    owned, inputs = keys_of([*model.parameters(), *model.buffers()]), keys_of(given)
    account = account_of(watcher, depth, owned, inputs)
    others = watcher.kept() | owned | inputs
    loose = {storage.key: storage.bytes for t in _tensors(outputs) for storage in storages_of(t)}
    return _Ran(outputs, account, sum(size for key, size in loose.items() if key not in others))


def _backward(outputs: Any) -> None:
    """The backward of the sum of all outputs that have a gradient."""
    sums = [t.sum() for t in _tensors(outputs) if t.is_floating_point() and t.requires_grad]
    if sums:
        torch.stack([each.to(sums[0]) for each in sums]).sum().backward()


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _is_on_meta(model: nn.Module, given: _Inputs) -> bool:
    """Whether the inputs are meta tensors, or the parameters if there are none."""
    named = given.named()
    if not named:
        return any(parameter.is_meta for parameter in model.parameters())
    on_meta = [name for name, tensor in named if tensor.is_meta]
    others = [name for name, tensor in named if not tensor.is_meta]
    if on_meta and others:
        raise ValueError(f"memory_report(): {on_meta[0]} is on the meta device, but {others[0]} is not")
    return bool(on_meta)


def _with_progress(names: Iterable[str], is_shown: bool) -> Iterable[str]:
    """Shows a bar on a terminal if it takes longer than a second and tqdm is there."""
    try:
        from tqdm import tqdm
    except ImportError:
        return names
    return tqdm(names, "memory_report", delay=1, leave=False, disable=None if is_shown else True)
