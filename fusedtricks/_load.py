"""Loads the compiled libraries, or says in one sentence why they cannot be."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch

INSTRUCTION_SETS = ("default", "avx2", "avx512")
_FOLDER = Path(__file__).parent


def choose_instruction_set(capability: str, built: Sequence[str]) -> str:
    """The best built instruction set that is not above what torch runs on.

    Args:
        capability: what `torch.backends.cpu.get_cpu_capability()` answers; `ATEN_CPU_CAPABILITY` sets it.
        built: names among `INSTRUCTION_SETS`, "default" always with them.
    """
    name = capability.lower()
    level = max((i for i, known in enumerate(INSTRUCTION_SETS) if name.startswith(known)), default=0)
    return max((i for i in INSTRUCTION_SETS[: level + 1] if i in built), key=INSTRUCTION_SETS.index)


def torch_key(version: str, cuda: str | None) -> tuple[str, str | None]:
    """What has to be equal in the torch built against and the torch running.

    torch keeps its C++ interface within a minor release, so a patch release does not matter and a development
    version has to be the very same. The CUDA release decides which runtime torch brings along, and a copy
    built for a torch without CUDA has no kernels for it.
    """
    numbers = version.split("+")[0].split(".")
    released = all(number.isdigit() for number in numbers)
    return ".".join(numbers[:2]) if released else version, cuda


def check_torch(build_info: ModuleType) -> None:
    """Raises ImportError where this torch is not the one that the libraries were built for."""
    built, running = (build_info.torch, build_info.cuda), (torch.__version__, torch.version.cuda)
    if torch_key(*built) == torch_key(*running):
        return
    names = [
        f"torch {version.split('+')[0]} ({f'CUDA {cuda}' if cuda else 'no CUDA'})" for version, cuda in (built, running)
    ]
    raise ImportError(
        f"fusedtricks was built for {names[0]} and cannot run with {names[1]}: "
        "install it again from its source (`pip install .`), which builds it for the torch that is there."
    )


def _missing() -> ImportError:
    return ImportError(
        f"fusedtricks has no compiled libraries for this Python in {_FOLDER}: if that is a checkout, run "
        "`pip install -e .` in it or start Python in another folder, and otherwise install it again."
    )


def _load_kernels(core: ModuleType, device: str, name: str) -> None:
    path = _FOLDER / f"_{name}.so"
    if not path.exists():
        raise _missing()
    core.load_kernels(device, str(path))


def load_libraries() -> None:
    """Loads `_C`, the CPU kernels of one instruction set, and the CUDA kernels where they were built."""
    try:
        build_info = import_module("fusedtricks._build_info")
        check_torch(build_info)
        core = import_module("fusedtricks._C")
    except ModuleNotFoundError as error:
        raise _missing() from error
    built = [name.removeprefix("cpu_") for name in build_info.backends if name.startswith("cpu_")]
    _load_kernels(core, "cpu", f"cpu_{choose_instruction_set(torch.backends.cpu.get_cpu_capability(), built)}")
    if "cuda" in build_info.backends:
        _load_kernels(core, "cuda", "cuda")
