"""Loads the compiled libraries, or says in one sentence why that is impossible."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch

_FOLDER = Path(__file__).parent


def choose_instruction_set(capability: str, known: Sequence[str], built: Sequence[str]) -> str:
    """The best built instruction set that is no better than the one torch uses.

    Args:
        capability: the value of `cpu_capability()`.
        known: the names of all instruction sets in ascending order, as `setup.py` lists them.
        built: those of them that were built, always including "default".
    """
    name = capability.lower()
    level = max((i for i, isa in enumerate(known) if name.startswith(isa)), default=0)
    return max((isa for isa in known[: level + 1] if isa in built), key=known.index)


def cpu_capability(known: Sequence[str]) -> str:
    """The instruction set that `ATEN_CPU_CAPABILITY` names, else the one torch uses.

    torch ignores names that it does not know, but they may be known here.
    """
    forced = os.environ.get("ATEN_CPU_CAPABILITY", "")
    return forced if forced in known else torch.backends.cpu.get_cpu_capability()


def torch_key(version: str, cuda: str | None) -> tuple[str, str | None]:
    """What must match between the torch we were built against and the torch that is running.

    torch keeps its C++ interface stable within a minor release, so the patch release does not matter; a development
    version must be exactly the same. The CUDA version must match too: it decides which CUDA runtime torch ships, and
    a copy built for a torch without CUDA has no CUDA kernels.
    """
    numbers = version.split("+")[0].split(".")
    released = all(number.isdigit() for number in numbers)
    return ".".join(numbers[:2]) if released else version, cuda


def check_torch(build_info: ModuleType) -> None:
    """Raises ImportError if the libraries were built for another torch than this one."""
    built, running = (build_info.torch, build_info.cuda), (torch.__version__, torch.version.cuda)
    if torch_key(*built) == torch_key(*running):
        return
    names = [
        f"torch {version.split('+')[0]} ({f'CUDA {cuda}' if cuda else 'no CUDA'})" for version, cuda in (built, running)
    ]
    raise ImportError(
        f"fusedtricks was built for {names[0]} and cannot run with {names[1]}: "
        "reinstall it from source (`pip install .`), which builds it for the torch that is installed."
    )


def _missing() -> ImportError:
    return ImportError(
        f"fusedtricks has no compiled libraries for this Python in {_FOLDER}: if that is a checkout, run "
        "`pip install -e .` in it or start Python in another folder; otherwise reinstall fusedtricks."
    )


def _load_kernels(core: ModuleType, device: str, name: str) -> None:
    path = _FOLDER / f"_{name}.so"
    if not path.exists():
        raise _missing()
    core.load_kernels(device, str(path))


def load_libraries() -> None:
    """Loads `_C`, the CPU kernels for one instruction set, and the CUDA kernels if they were built."""
    try:
        build_info = import_module("fusedtricks._build_info")
        check_torch(build_info)
        core = import_module("fusedtricks._C")
    except ModuleNotFoundError as error:
        raise _missing() from error
    built = [name.removeprefix("cpu_") for name in build_info.backends if name.startswith("cpu_")]
    known = build_info.instruction_sets
    _load_kernels(core, "cpu", f"cpu_{choose_instruction_set(cpu_capability(known), known, built)}")
    if "cuda" in build_info.backends:
        _load_kernels(core, "cuda", "cuda")
