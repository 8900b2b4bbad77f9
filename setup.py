"""The native libraries: `_C`, the CPU kernels once per instruction set, the CUDA kernels where possible."""

from __future__ import annotations

import os
import platform
import sys
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / ".build_backend"))
# In ascending order: a machine that has one has those before it. `_load.py` takes the best that torch runs on.
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
    # Not vptr, which looks up type information that torch keeps to itself; nor null and object-size: what they would
    # see, AddressSanitizer does, in half the time to compile.
    CXX_FLAGS += ["-O1", "-g1", "-fno-omit-frame-pointer", f"-fsanitize={SANITIZE}"]
    CXX_FLAGS += ["-fno-sanitize=vptr,null,object-size"]
LINK_FLAGS = [f"-fsanitize={SANITIZE}"] if SANITIZE else []


def chosen_instruction_sets() -> list[str]:
    """What to build: `FUSEDTRICKS_INSTRUCTION_SETS` (names, or all), otherwise what this machine can use best."""
    import torch

    chosen = os.environ.get("FUSEDTRICKS_INSTRUCTION_SETS")
    if chosen == "all":
        return list(INSTRUCTION_SETS)
    if chosen is not None:
        return ["default", *chosen.split(",")]
    capability = torch.backends.cpu.get_cpu_capability().lower()
    return ["default", *[isa for isa in INSTRUCTION_SETS if capability.startswith(isa)]]


def obstacle(isa: str) -> str:
    """Why an instruction set is left out; "" where it is built, as the default always is."""
    if isa != "default" and platform.machine() not in ("x86_64", "AMD64"):
        return f"an instruction set of x86-64, and this is {platform.machine()}"
    if isa in chosen_instruction_sets():
        return ""
    return "not the best of this machine; FUSEDTRICKS_INSTRUCTION_SETS=all builds every one"


def sources(folder: str, *suffixes: str) -> list[str]:
    return sorted(str(path) for path in Path(folder).rglob("*") if path.suffix in suffixes)


def library(name: str, files: list[str], *, libraries=(), flags=(), nvcc_flags=(), link_flags=(), folders=()):
    """A library that sees torch's headers and is linked to no more of torch than it names."""
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
    # Sanitized are the kernels alone: what they are bound with has no raw memory, and takes longest to compile.
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


# An sdist holds no compiled code, so it is made without torch; for anything else the backend brings it in.
setup(**(native() if find_spec("torch") else {}))
