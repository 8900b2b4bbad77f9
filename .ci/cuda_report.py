"""Compiles CUDA sources with nvcc and prints the registers and spills of every kernel.

`python .ci/cuda_report.py [SOURCE...]` compiles all of csrc/cuda by default. It exits with 1 if a source does not
compile, or if a kernel spills registers or has a stack in local memory. It needs neither a GPU nor a CUDA build of
torch, only torch's headers.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MACHINES = (80, 90)
_KERNEL = re.compile(
    r"Compiling entry function '(?P<symbol>\S+)' for 'sm_(?P<machine>\d+)\w*'"
    r".*?(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
    r".*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)


@dataclass(frozen=True)
class Kernel:
    symbol: str
    machine: int
    registers: int
    stack: int
    stores: int
    loads: int

    @property
    def uses_local_memory(self) -> bool:
        return bool(self.stack or self.stores or self.loads)


def all_sources() -> list[Path]:
    """All CUDA sources, the slowest to compile first, so that none of those runs alone at the end."""
    found = sorted((ROOT / "csrc/cuda").rglob("*.cu"))
    return sorted(found, key=lambda path: path.parent.name != "instantiate")


def toolkit() -> Path | None:
    """The folder of the CUDA toolkit that a build of the package would use."""
    sys.path.insert(0, str(ROOT / ".build_backend"))
    import cuda

    return cuda.TOOLKIT


def options() -> list[str]:
    """The options of torch's build command, and a substitute for headers missing in a torch without CUDA."""
    spec = find_spec("torch")
    assert spec is not None and spec.origin is not None
    include = Path(spec.origin).parent / "include"
    release = tuple(int(number) for number in version("torch").split(".")[:2])
    # PTX only for the newest machine, for which it is a by-product of the machine code.
    *older, newest = MACHINES
    code = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in older]
    code += [f"-gencode=arch=compute_{newest},code=[sm_{newest},compute_{newest}]"]
    missing = not (include / "c10/cuda/impl/cuda_cmake_macros.h").exists()
    return [
        f"-std={'c++17' if release < (2, 12) else 'c++20'}",
        *["-O3", "--expt-relaxed-constexpr", "-Xcompiler", "-fPIC", "-Xptxas", "-v"],
        *(["-DC10_CUDA_NO_CMAKE_CONFIGURE_FILE"] if missing else []),
        *[f"-I{ROOT / 'csrc'}", f"-I{include}"],
        *code,
    ]


def compile_source(nvcc: Path, source: Path, flags: list[str]) -> str:
    """Returns the compiler's output about the kernels. Raises SystemExit with the errors, if any."""
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, *flags, "-c", source, "-o", Path(folder, "object.o")]
        process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode != 0:
        raise SystemExit(f"{source} does not compile:\n{process.stdout}{process.stderr}")
    return process.stdout + process.stderr


def kernels(log: str) -> list[Kernel]:
    found = []
    for match in _KERNEL.finditer(log):
        numbers = {name: int(value) for name, value in match.groupdict().items() if name != "symbol"}
        found.append(Kernel(match["symbol"], **numbers))
    return found


def shorten(name: str) -> str:
    """A kernel's name without the common namespaces and its parameters."""
    name = re.sub(r"\(anonymous namespace\)::|fusedtricks::|cuda::|c10::|\(int\)|\(bool\)|^void ", "", name)
    depth = 0
    for i, character in enumerate(name):
        depth += (character == "<") - (character == ">")
        if character == "(" and depth == 0:
            return name[:i]
    return name


def demangle(symbols: list[str]) -> list[str]:
    process = subprocess.run(["c++filt"], input="\n".join(symbols), check=True, capture_output=True, text=True)
    return [shorten(line) for line in process.stdout.splitlines()]


def table(found: list[Kernel]) -> list[str]:
    """A header, and one line per kernel with its registers on each machine."""
    by_symbol: dict[str, dict[int, Kernel]] = {}
    for kernel in found:
        by_symbol.setdefault(kernel.symbol, {})[kernel.machine] = kernel
    lines = ["  ".join([*(f"sm_{number}" for number in MACHINES), "spill", "stack", "kernel"])]
    for name, of_machine in sorted(zip(demangle(list(by_symbol)), by_symbol.values(), strict=True), key=lambda x: x[0]):
        spill = max(kernel.stores + kernel.loads for kernel in of_machine.values())
        stack = max(kernel.stack for kernel in of_machine.values())
        registers = "  ".join(f"{of_machine[number].registers:5}" for number in MACHINES)
        lines.append(f"{registers}  {spill:5}  {stack:5}  {name}")
    return lines


def main(sources: list[Path]) -> int:
    folder = toolkit()
    if folder is None:
        print("No nvcc found: the CUDA sources were not compiled.")
        return 0
    nvcc, flags = folder / "bin/nvcc", options()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        logs = list(pool.map(lambda source: compile_source(nvcc, source, flags), sources))
    found = [kernel for log in logs for kernel in kernels(log)]
    assert len(found) == sum(log.count("Compiling entry function") for log in logs)
    print("\n".join(table(found)))
    faulty = [kernel for kernel in found if kernel.uses_local_memory]
    machines = ", ".join(f"sm_{number}" for number in MACHINES)
    most = max((kernel.registers for kernel in found), default=0)
    print(
        f"{len(sources)} sources, {len(found)} kernels for {machines} and PTX for {MACHINES[-1]}; "
        f"at most {most} registers; {len(faulty)} kernels in local memory"
    )
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main([Path(argument) for argument in sys.argv[1:]] or all_sources()))
