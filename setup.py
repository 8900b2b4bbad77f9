"""Builds the native libraries: `_C`, the CPU kernels once per instruction set, and the CUDA kernels if possible."""

from __future__ import annotations

import os
import platform
import sys
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / ".build_backend"))
# In ascending order: a machine with one of them also has those before it. `_load.py` picks the best one torch uses.
INSTRUCTION_SETS = {
    "default": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": [
        "-mavx512f",
        "-mavx512bw",
        "-mavx512vl",
        "-mavx512dq",
        "-mfma",
        "-mf16c",
        "-mprefer-vector-width=512",
    ],
}
CXX_FLAGS = [
    "-O3",
    "-g0",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-fvisibility-inlines-hidden",
]
SANITIZE = os.environ.get("FUSEDTRICKS_SANITIZE", "")
if SANITIZE:
    # Without vptr, which needs type information that torch does not export, and without null and object-size:
    # AddressSanitizer finds the same errors in half the compile time.
    CXX_FLAGS += ["-O1", "-g1", "-fno-omit-frame-pointer", f"-fsanitize={SANITIZE}"]
    CXX_FLAGS += ["-fno-sanitize=vptr,null,object-size"]
LINK_FLAGS = [f"-fsanitize={SANITIZE}"] if SANITIZE else []


def chosen_instruction_sets() -> list[str]:
    """What to build: `FUSEDTRICKS_INSTRUCTION_SETS` (names or "all"), by default "default" and this machine's best."""
    import torch

    chosen = os.environ.get("FUSEDTRICKS_INSTRUCTION_SETS")
    if chosen == "all":
        return list(INSTRUCTION_SETS)
    if chosen is not None:
        # Sanitized kernels are not installed for use: only those that were asked for.
        return chosen.split(",") if SANITIZE else ["default", *chosen.split(",")]
    capability = torch.backends.cpu.get_cpu_capability().lower()
    return ["default", *[isa for isa in INSTRUCTION_SETS if capability.startswith(isa)]]


def obstacle(isa: str) -> str:
    """Why an instruction set is left out; "" if it is built. The default is always built."""
    if isa != "default" and platform.machine() not in ("x86_64", "AMD64"):
        return f"an x86-64 instruction set, but this machine is {platform.machine()}"
    if isa in chosen_instruction_sets():
        return ""
    return "not the best for this machine; FUSEDTRICKS_INSTRUCTION_SETS=all builds all of them"


def sources(folder: str, *suffixes: str) -> list[str]:
    return sorted(str(path) for path in Path(folder).rglob("*") if path.suffix in suffixes)


def library(name: str, files: list[str], *, libraries=(), flags=(), nvcc_flags=(), link_flags=(), folders=()):
    """A library that can use all of torch's headers, but is linked only with the torch libraries it names."""
    from toolchain import include_paths, library_paths

    return Extension(
        f"fusedtricks.{name}",
        files,
        depends=[str(path) for path in Path("csrc").rglob("*.*h")],
        include_dirs=[str(HERE / "csrc"), *include_paths()],
        library_dirs=[*library_paths(), *folders],
        libraries=["c10", "torch_cpu", *libraries],
        extra_compile_args={"cxx": [*CXX_FLAGS, *flags], "nvcc": ["-O3", *nvcc_flags]},
        extra_link_args=[*LINK_FLAGS, *link_flags],
        language="c++",
    )


def native() -> dict[str, object]:
    """The arguments of `setup` that depend on torch."""
    import toolchain

    openmp_flags, openmp_link_flags = toolchain.openmp()
    # Only the kernels are sanitized: the bindings do not access raw memory and take longest to compile.
    core = (
        []
        if SANITIZE
        else [library("_C", ["csrc/library.cpp", *sources("csrc/ops", ".cpp")], libraries=["torch_python"])]
    )
    exports = "csrc/calls/library.cpp"
    backends: dict[str, Extension] = {}
    left_out: dict[str, str] = {}
    for isa, isa_flags in INSTRUCTION_SETS.items():
        if reason := obstacle(isa):
            left_out[f"cpu_{isa}"] = reason
            continue
        backends[f"cpu_{isa}"] = library(
            f"_cpu_{isa}",
            [exports, *sources("csrc/cpu", ".cpp")],
            flags=[f"-DFUSEDTRICKS_ISA={isa}", *isa_flags, *openmp_flags],
            link_flags=openmp_link_flags,
        )
    cuda = toolchain.Cuda(sources("csrc/cuda", ".cu"))
    if cuda.obstacle:
        left_out["cuda"] = cuda.obstacle
    else:
        backends["cuda"] = library("_cuda", [exports, *sources("csrc/cuda", ".cu", ".cpp")], **cuda.library_arguments())
    info = {
        "backends": list(backends),
        "instruction_sets": list(INSTRUCTION_SETS),
        "left_out": left_out,
        "cuda_architectures": cuda.architectures,
    }
    return {
        "ext_modules": [*core, *backends.values()],
        "cmdclass": {"build_ext": toolchain.build_ext("sanitize" if SANITIZE else "release", info)},
        "install_requires": [toolchain.torch_requirement()],
    }


# An sdist contains no compiled code, so it is made without torch; for everything else the backend provides torch.
setup(**(native() if find_spec("torch") else {}))
