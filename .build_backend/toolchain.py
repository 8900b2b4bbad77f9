"""Building against the torch of this environment: its paths, its OpenMP runtime, the build command."""

from __future__ import annotations

import os
import pprint
import re
import sys
from pathlib import Path

import torch
from cuda import Cuda  # first: it sets CUDA_HOME, which cpp_extension reads when imported
from torch.utils.cpp_extension import BuildExtension, include_paths, library_paths

__all__ = ["Cuda", "build_ext", "include_paths", "library_paths", "openmp", "torch_requirement"]

OLDEST_TORCH = (2, 11)


def torch_requirement() -> str:
    """torch's C++ interface is stable within a minor release, so that is what a build asks for."""
    major, minor = map(int, torch.__version__.split(".")[:2])
    if (major, minor) < OLDEST_TORCH:
        raise SystemExit(
            f"fusedtricks: torch {torch.__version__} is too old; "
            f"install {OLDEST_TORCH[0]}.{OLDEST_TORCH[1]} or newer and build again."
        )
    return f"torch=={major}.{minor}.*"


def openmp() -> tuple[list[str], list[str]]:
    """Flags to compile and to link with OpenMP, on torch's own runtime: two would fight over the cores."""
    package = Path(torch.__file__).parent
    folders = (package / "lib", package.parent / "torch.libs")
    runtimes = [str(path) for folder in folders for path in sorted(folder.glob("lib[gi]*omp*.so*"))]
    if sys.platform != "darwin":
        return ["-fopenmp"], runtimes[:1] or ["-fopenmp"]
    runtime = package / "lib" / "libomp.dylib"
    if runtime.exists() and (package / "include" / "omp.h").exists():
        return ["-Xpreprocessor", "-fopenmp"], [str(runtime)]
    return [], []


def _version() -> str:
    return re.search(r'^version = "(.+)"$', Path("pyproject.toml").read_text(), re.MULTILINE)[1]


def build_ext(variant: str, info: dict[str, object]) -> type[BuildExtension]:
    """torch's build command, with objects apart per library and a record of what was built."""
    info = {"version": _version(), "torch": torch.__version__, "cuda": torch.version.cuda, **info}

    class BuildLibraries(BuildExtension):
        def get_ext_filename(self, name: str) -> str:
            if name.rpartition(".")[2] == "_C":
                return super().get_ext_filename(name)
            return f"{name.replace('.', os.sep)}.so"  # not a Python module: opened by torch.ops.load_library

        def build_extension(self, extension) -> None:
            # A folder for each library, because the instruction sets share their sources; for each torch and
            # variant, so that going back and forth rebuilds nothing; and not setuptools' own choice, which is
            # a temporary one in an editable install.
            tag = f"{variant}-torch{torch.__version__}-{sys.implementation.cache_tag}"
            self.build_temp = str(Path("build", "objects", tag, extension.name))
            Path(self.build_temp).mkdir(parents=True, exist_ok=True)
            super().build_extension(extension)

        def run(self) -> None:
            super().run()
            package = Path("." if self.inplace else self.build_lib, "fusedtricks")
            record = ['"""What this copy of fusedtricks was built with; written by the build."""\n']
            record += [f"{name} = {pprint.pformat(value, width=100)}" for name, value in info.items()]
            (package / "_build_info.py").write_text("\n".join(record) + "\n")
            print(f"fusedtricks: built for torch {torch.__version__}: {', '.join(info['backends'])}")
            for name, reason in info["left_out"].items():
                print(f"fusedtricks: {name} left out: {reason}", flush=True)

    return BuildLibraries
