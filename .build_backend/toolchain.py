"""Building against this environment's torch: its paths, its OpenMP runtime and the build command."""

from __future__ import annotations

import os
import pprint
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from cuda import Cuda  # first: it sets CUDA_HOME, which cpp_extension reads when imported
from torch.utils.cpp_extension import BuildExtension, get_cxx_compiler, include_paths, library_paths

__all__ = ["Cuda", "build_ext", "include_paths", "library_paths", "openmp", "torch_requirement"]

OLDEST_TORCH = (2, 11)


def torch_requirement() -> str:
    """The torch that a build requires: this minor release, within which torch's C++ interface is stable."""
    major, minor = map(int, torch.__version__.split(".")[:2])
    if (major, minor) < OLDEST_TORCH:
        raise SystemExit(
            f"fusedtricks: torch {torch.__version__} is too old; "
            f"install {OLDEST_TORCH[0]}.{OLDEST_TORCH[1]} or newer and build again."
        )
    return f"torch=={major}.{minor}.*"


def openmp() -> tuple[list[str], list[str]]:
    """Compile and link flags for OpenMP. Uses torch's own runtime, because two runtimes would compete for the cores."""
    package = Path(torch.__file__).parent
    folders = (package / "lib", package.parent / "torch.libs")
    runtimes = [str(path) for folder in folders for path in sorted(folder.glob("lib[gi]*omp*.so*"))]
    if sys.platform != "darwin":
        return ["-fopenmp"], runtimes[:1] or ["-fopenmp"]
    runtime = package / "lib" / "libomp.dylib"
    if runtime.exists() and (package / "include" / "omp.h").exists():
        return ["-Xpreprocessor", "-fopenmp"], [str(runtime)]
    return [], []


@contextmanager
def _precompiled(header: Path, folder: Path, extension, compiler) -> Iterator[None]:
    """Precompiles a header that all of an extension's sources then include first.

    Only if there are no object files yet: it does not pay for a source or two. The result takes half a gigabyte and is
    deleted afterwards. A compiler that cannot use it includes the header as text.
    """
    if any(folder.rglob("*.o")) or sys.platform == "darwin":
        yield
        return
    target = folder / "precompiled" / header.name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(header, target)
    standard = "c++17" if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 12) else "c++20"
    includes = [f"-I{path}" for path in [*extension.include_dirs, *compiler.include_dirs]]
    flags = [*compiler.compiler_so[1:], *includes, *extension.extra_compile_args["cxx"], f"-std={standard}"]
    print(f"fusedtricks: compiling {header}", flush=True)
    command = [get_cxx_compiler(), *flags, "-x", "c++-header", str(header), "-o", f"{target}.gch"]
    subprocess.run(command, check=False)
    extension.extra_compile_args["cxx"] += ["-include", str(target)]
    try:
        yield
    finally:
        Path(f"{target}.gch").unlink(missing_ok=True)


def _version() -> str:
    return re.search(r'^version = "(.+)"$', Path("pyproject.toml").read_text(), re.MULTILINE)[1]


def build_ext(variant: str, info: dict[str, object]) -> type[BuildExtension]:
    """torch's build command, with separate objects for each library and a record of what was built."""
    info = {"version": _version(), "torch": torch.__version__, "cuda": torch.version.cuda, **info}

    class BuildLibraries(BuildExtension):
        def get_ext_filename(self, name: str) -> str:
            if name.rpartition(".")[2] == "_C":
                return super().get_ext_filename(name)
            return f"{name.replace('.', os.sep)}.so"  # not a Python module: `_C` loads it

        def build_extension(self, extension) -> None:
            # One folder per library, because the instruction sets share their sources, and per torch and variant, so
            # that switching back and forth rebuilds nothing. setuptools' own folder would be a temporary one in an
            # editable install.
            tag = f"{variant}-torch{torch.__version__}-{sys.implementation.cache_tag}"
            self.build_temp = str(Path("build", "objects", tag, extension.name))
            folder = Path(self.build_temp).resolve()
            folder.mkdir(parents=True, exist_ok=True)
            print(f"fusedtricks: building {extension.name}, {len(extension.sources)} sources", flush=True)
            header = Path("csrc/ops/precompiled.h")
            if not extension.name.endswith("._C"):
                return super().build_extension(extension)
            with _precompiled(header, folder, extension, self.compiler):
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
