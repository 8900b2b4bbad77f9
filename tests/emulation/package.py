"""A copy of the installed package whose CPU kernels are another library: what a test process puts first on its path.

`python -m emulation.package FOLDER [FLAG...]`, in the folder of the tests, builds the CUDA kernels with these flags for
the compiler and puts the copy that runs them into FOLDER/site.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

from emulation.library import build


def make_package(site: Path, library: Path) -> Path:
    """Makes the copy in the folder `site`, which is to come first on PYTHONPATH, and answers that folder."""
    spec = importlib.util.find_spec("fusedtricks")
    assert spec is not None and spec.origin is not None, "fusedtricks is not installed"
    installed, package = Path(spec.origin).parent, site / "fusedtricks"
    shutil.copytree(installed, package, ignore=shutil.ignore_patterns("__pycache__", "_cpu_*.so", "_cuda.so"))
    shutil.copy(library, package / "_cpu_default.so")
    with open(package / "_build_info.py", "a") as build_info:
        build_info.write("\n# This copy has the emulated CUDA kernels alone.\nbackends = ['cpu_default']\n")
    return site


def main(folder: Path, flags: list[str]) -> None:
    make_package(folder / "site", build(folder, flags))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2:])
