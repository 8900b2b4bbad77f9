"""Finds out whether the CUDA kernels can be built here, and how."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import torch


def _find_toolkit() -> Path | None:
    """The folder of a CUDA toolkit. It is checked for nvcc and headers: an nvcc on PATH may be a script outside it."""
    candidates = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    if nvcc := shutil.which("nvcc"):
        candidates.append(str(Path(nvcc).resolve().parent.parent))
    candidates.append("/usr/local/cuda")
    roots = [Path(candidate) for candidate in candidates if candidate]
    return next((r for r in roots if (r / "bin/nvcc").exists() and (r / "include/cuda_runtime.h").exists()), None)


TOOLKIT = _find_toolkit()
if TOOLKIT is not None:
    os.environ["CUDA_HOME"] = str(TOOLKIT)  # torch guesses it when cpp_extension is imported, maybe wrongly


def _ask_nvcc(question: str) -> str:
    assert TOOLKIT is not None
    return subprocess.run([TOOLKIT / "bin/nvcc", question], check=True, capture_output=True, text=True).stdout


class Cuda:
    """The CUDA library: `obstacle` says in one line why it is left out; it is "" if the library can be built.

    `FUSEDTRICKS_CUDA=0` leaves it out; with `FUSEDTRICKS_CUDA=1` any other obstacle is an error.
    """

    def __init__(self, kernels: list[str]) -> None:
        self.obstacle = _find_obstacle(kernels)
        if self.obstacle and os.environ.get("FUSEDTRICKS_CUDA") == "1":
            raise SystemExit(f"fusedtricks: FUSEDTRICKS_CUDA=1, but {self.obstacle}.")
        self.architectures = [] if self.obstacle else _architectures()
        if not self.obstacle:
            os.environ["TORCH_CUDA_ARCH_LIST"] = ";".join(self.architectures)

    def library_arguments(self) -> dict[str, list[str]]:
        """Build arguments that only this library needs."""
        assert TOOLKIT is not None
        headers: list[str] = []
        if not (TOOLKIT / "include/cusparse.h").exists():
            # A minimal toolkit: the other headers are in torch's wheels, searched after the toolkit's own.
            headers = [argument for folder in _wheel_headers() for argument in ("-isystem", str(folder))]
        lib = next((TOOLKIT / name for name in ("lib64", "lib") if (TOOLKIT / name).is_dir()), TOOLKIT / "lib64")
        return {
            "flags": ["-DFUSEDTRICKS_ISA=cuda", f"-I{TOOLKIT / 'include'}", *headers],
            "nvcc_flags": headers,
            "folders": [str(lib)],
            "libraries": ["c10_cuda", "torch_cuda", "cudart"],
        }


def _find_obstacle(kernels: list[str]) -> str:
    if os.environ.get("FUSEDTRICKS_CUDA") == "0":
        return "FUSEDTRICKS_CUDA=0"
    if not kernels:
        return "this version has no CUDA kernels"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is not a CUDA build"
    major = torch.version.cuda.split(".")[0]
    remedy = f"install the CUDA {major} toolkit and set CUDA_HOME to its folder"
    if TOOLKIT is None:
        return f"no folder with bin/nvcc and include/cuda_runtime.h was found: {remedy}"
    release = re.search(r"release (\d+)\.\d+", _ask_nvcc("--version"))
    if release is None or release[1] != major:
        found = release[0] if release else "of unknown release"
        return f"the CUDA toolkit in {TOOLKIT} is {found} and torch's CUDA is {torch.version.cuda}: {remedy}"
    return ""


def _wheel_headers() -> list[Path]:
    """Folders of the headers that came with torch's dependencies."""
    return sorted(Path(torch.__file__).parent.parent.glob("nvidia/cu[0-9]*/include"))


def _architectures() -> list[str]:
    """`TORCH_CUDA_ARCH_LIST`; by default torch's own architectures that nvcc knows, and PTX of the newest."""
    chosen = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
    if chosen:
        return chosen
    known = set(re.findall(r"compute_(\d+)\b", _ask_nvcc("--list-gpu-arch")))
    of_torch = set(re.findall(r"sm_(\d+)\b", torch._C._cuda_getArchFlags() or ""))
    numbers = sorted(int(number) for number in of_torch & known) or [max(int(number) for number in known)]
    names = [f"{number // 10}.{number % 10}" for number in numbers]
    return [*names[:-1], f"{names[-1]}+PTX"]
