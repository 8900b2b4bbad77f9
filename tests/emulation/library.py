"""The library of the CUDA kernels, compiled by a C++ compiler against the emulation: it answers for CPU tensors.

Every source is the one that nvcc compiles, apart from csrc/cuda/device/device.cpp, which asks CUDA's runtime.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent.parent
COMPILER = shlex.split(os.environ.get("CXX") or "g++")
FLAGS = ["-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden", "-pthread"]
FLAGS += ["-Wall", "-Wno-unknown-pragmas"]
MACROS = ["FUSEDTRICKS_EMULATED", "FUSEDTRICKS_ISA=default"]


def sources(csrc: Path) -> list[Path]:
    """Those that take longest to compile come first, so that none of them is left alone at the end."""
    kernels = [path for path in sorted((csrc / "cuda").rglob("*")) if path.suffix in (".cu", ".cpp")]
    kernels.sort(key=lambda path: path.parent.name != "instantiate" and path.name != "act_dropout.cu")
    return [*(path for path in kernels if path.name != "device.cpp"), csrc / "calls" / "library.cpp"]


def run(*command: str | Path) -> None:
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, f"{' '.join(map(str, command))}\n{process.stderr[:5000]}"


def compile_sources(csrc: Path, paths: Sequence[Path], folder: Path, flags: Sequence[str] = ()) -> list[Path]:
    """Compiles each source to an object in the folder, as many at once as there are cores.

    Args:
        csrc: the folder that the sources are from and include from.
        paths: of the sources.
        folder: for the objects.
        flags: for the compiler, after all others.
    """
    folders = [csrc, ROOT / "tests/emulation", Path(torch.__file__).parent / "include"]
    options = [*FLAGS, *(f"-D{macro}" for macro in MACROS), *(f"-I{path}" for path in folders), *flags]
    folder.mkdir(parents=True, exist_ok=True)
    objects = [folder / f"{path.parent.name}_{path.name}.o" for path in paths]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [
            pool.submit(run, *COMPILER, *options, "-x", "c++", "-c", path, "-o", target)
            for path, target in zip(paths, objects, strict=True)
        ]
        for job in jobs:
            job.result()
    return objects


def link(objects: Sequence[Path], library: Path, flags: Sequence[str] = ()) -> Path:
    torch_libraries = [f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch_cpu", "-lc10"]
    run(*COMPILER, "-shared", "-pthread", *objects, "-o", library, *torch_libraries, *flags)
    return library


def build(folder: Path, flags: Sequence[str] = ()) -> Path:
    """Builds the library in the folder and answers its path.

    Args:
        folder: gets the objects too, in `objects`.
        flags: for the compiler and the linker, after all others.
    """
    csrc = ROOT / "csrc"
    objects = compile_sources(csrc, sources(csrc), folder / "objects", flags)
    return link(objects, folder / "library.so", flags)


def build_edited(folder: Path, built: Path, only: str, path: str, edit: Callable[[str], str]) -> Path:
    """Builds the library once more from a copy of csrc with one file edited, compiling one source anew.

    Args:
        folder: gets the copy, the object and the library.
        built: a folder that `build` filled without flags: the other objects come from there.
        only: path of the source to compile, in csrc/cuda.
        path: of the file to edit, in csrc/cuda.
        edit: makes its new text.
    """
    csrc = folder / "csrc"
    shutil.copytree(ROOT / "csrc", csrc)
    edited = csrc / "cuda" / path
    edited.write_text(edit(edited.read_text()))
    objects = compile_sources(csrc, [csrc / "cuda" / only], folder / "objects")
    unchanged = [path for path in (built / "objects").iterdir() if path.name != objects[0].name]
    # The edited one first: of a template that several objects hold, the linker keeps what it meets first.
    return link([*objects, *sorted(unchanged)], folder / "library.so")
