"""fuse beside other code: it runs, stops and patches nothing, and an interruption leaves the model as it was."""

from __future__ import annotations

import gc
import signal
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fuse_case import chains, image
from fuse_models import BasicBlock
from torch import nn

import fusedtricks
from fusedtricks.fusing import model as fusing_model
from fusedtricks.fusing.install import swaps


def many_blocks() -> nn.Module:
    return nn.Sequential(*(BasicBlock() for _ in range(20)))


class Sets:
    """Its finaliser, and methods, set attributes and items: what a forward must not do."""

    count = 0

    def __init__(self) -> None:
        self.other: Any = self  # only the collector finds it

    def note(self, *arguments: Any) -> None:
        Sets.count += 1
        self.seen = {"note": arguments}
        self.seen["again"] = arguments

    def __del__(self) -> None:
        self.note()


def test_a_collection_in_the_middle(monkeypatch):
    """Callbacks of the collector, finalisers and weak references run as ever, and all blocks are fused."""
    Sets.count, times = 0, 0
    callback = Sets()
    read = fusing_model.make_plans

    def collecting(*arguments: Any) -> Any:
        nonlocal times
        times += 1
        garbage = Sets()
        weakref.finalize(garbage, callback.note)
        del garbage
        gc.collect()
        return read(*arguments)

    monkeypatch.setattr(fusing_model, "make_plans", collecting)
    monkeypatch.setattr(gc, "callbacks", [*gc.callbacks, callback.note])
    gc.callbacks.append(callback.note)
    try:
        fused = fusedtricks.fuse(many_blocks())
    finally:
        gc.callbacks.remove(callback.note)
    assert times == 21 and Sets.count >= 2 * times and chains(fused) == 40


def test_signals_in_the_middle():
    callback, before = Sets(), signal.getsignal(signal.SIGALRM)
    signal.signal(signal.SIGALRM, callback.note)
    Sets.count = 0
    signal.setitimer(signal.ITIMER_REAL, 1e-3, 1e-3)
    try:
        while Sets.count < 5:
            assert chains(fusedtricks.fuse(many_blocks())) == 40
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_beside_a_thread_that_runs_models():
    other, stop, results = BasicBlock().eval(), threading.Event(), []
    x = image().float()
    expected = other(x)

    def run() -> None:
        while not stop.is_set():
            results.append(torch.equal(other(x), expected))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        while len(results) < 5:
            assert chains(fusedtricks.fuse(many_blocks())) == 40
    finally:
        stop.set()
        thread.join()
    assert all(results)


def test_a_profiler_goes_on():
    calls: Counter[str] = Counter()
    sys.setprofile(lambda frame, event, argument: calls.update([frame.f_code.co_name]))
    try:
        fusedtricks.fuse(BasicBlock(), inplace=True)
        assert sys.getprofile() is not None
    finally:
        sys.setprofile(None)
    assert calls["fuse"] and not calls["_conv_forward"]


@pytest.mark.parametrize("when", range(1, 9))
def test_interrupted(when, monkeypatch):
    """Ctrl-C while the changes are made leaves the model as it was."""
    model, count = nn.Sequential(BasicBlock(), BasicBlock()), 0
    before = [(type(m), set(vars(m))) for m in model.modules()]

    def interrupting(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any) -> Any:
            nonlocal count
            count += 1
            function(*arguments)
            if count == when:
                raise KeyboardInterrupt

        return wrapper

    monkeypatch.setattr(fusing_model, "set_plans", interrupting(fusing_model.set_plans))
    monkeypatch.setattr(swaps, "swap", interrupting(swaps.swap))
    with pytest.raises(KeyboardInterrupt):
        fusedtricks.fuse(model, inplace=True)
    assert [(type(m), set(vars(m))) for m in model.modules()] == before
    monkeypatch.undo()
    assert chains(fusedtricks.fuse(model, inplace=True)) == 4


def test_the_collector_is_never_asked_to_run():
    """Its time depends on what else lives in the process."""
    collections = [stage["collections"] for stage in gc.get_stats()]
    gc.disable()
    try:
        fusedtricks.fuse(many_blocks())
        assert [stage["collections"] for stage in gc.get_stats()] == collections
    finally:
        gc.enable()
