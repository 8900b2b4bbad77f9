"""Fixtures for all tests, and the devices that tests run on."""

from __future__ import annotations

import os

# Threads that wait sleep instead of keeping a core busy: on a shared machine, spinning ones take hours. Read when torch
# is imported; processes that tests start inherit it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hardware import devices
from torch import Tensor

from fusedtricks import _C, functional

MARKS = {"cpu": (), "cuda": pytest.mark.cuda}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "each_isa: also run once for every instruction set of the machine")
    config.addinivalue_line("markers", "cuda: needs a GPU and the CUDA backend")


def pytest_report_header(config: pytest.Config) -> str:
    if config.getoption("markexpr") == "not slow":
        return "slow tests are left out; to run all: pytest -m 'slow or not slow'"
    return f"tests marked: {config.getoption('markexpr')}"


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") and "cuda" not in devices():
        pytest.skip("needs a GPU and the CUDA backend")


@pytest.fixture(params=[pytest.param(name, marks=MARKS[name]) for name in devices()])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def uninitialized_memory_is_nan() -> Iterator[None]:
    """`torch.empty` and C++'s `at::empty` return NaN, so that an element that is never written is noticed."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(8).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def convolutions_round_to_their_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns off TF32, which a GPU otherwise uses for float32: results are compared with float32 accuracy."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def restore_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["auto", "two", "hold"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each path through batch_norm_act's CUDA kernels."""
    monkeypatch.setenv("FUSEDTRICKS_CUDA_PATH", request.param)
    _C.reload_settings()
    yield request.param
    monkeypatch.undo()
    _C.reload_settings()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The activations of all fused BatchNorms that ran."""
    seen: list[str] = []
    fused, pooled = functional.batch_norm_act, functional.batch_norm_act_max_pool2d

    def spy(*args: Any, **kwargs: Any) -> Tensor:
        seen.append(("+ " if args[5] is not None else "") + kwargs["act"])
        return fused(*args, **kwargs)

    def pool_spy(*args: Any, **kwargs: Any) -> Tensor:
        seen.append(f"{kwargs['act']} pooled")
        return pooled(*args, **kwargs)

    monkeypatch.setattr(functional, "batch_norm_act", spy)
    monkeypatch.setattr(functional, "batch_norm_act_max_pool2d", pool_spy)
    return seen
