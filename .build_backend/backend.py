"""setuptools' PEP 517 backend, but it builds against the torch that will run the package.

pip builds in an isolated environment. A torch named in `build-system.requires` would be the newest release there, not
the one that will load the libraries. So this backend looks for the interpreter's torch outside the isolated environment
and uses that one; only if there is none does it request the pinned default.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import build_meta

DEFAULT_TORCH = "torch==2.13.0"

_PROBE = """
import importlib.util, json, sys
print(json.dumps([importlib.util.find_spec("torch") is not None, [path for path in sys.path if path]]))
"""


@functools.cache
def _target_path() -> list[str]:
    """`sys.path` of this interpreter without pip's isolation, or [] if there is no torch on it."""
    isolation = ("PYTHONPATH", "PYTHONHOME", "PYTHONNOUSERSITE")
    environment = {name: value for name, value in os.environ.items() if name not in isolation}
    with tempfile.TemporaryDirectory() as elsewhere:
        answer = subprocess.run(
            [sys.executable, "-c", _PROBE], env=environment, cwd=elsewhere, capture_output=True, text=True
        )
    if answer.returncode != 0 or not answer.stdout.strip():
        return []
    has_torch, path = json.loads(answer.stdout.splitlines()[-1])
    return path if has_torch else []


def _has_torch() -> bool:
    """Whether torch can be imported; adds the target's torch to `sys.path` if there is none yet."""
    if importlib.util.find_spec("torch") is None:
        # At the end, so that the isolated environment's build requirements come first.
        sys.path += [path for path in _target_path() if path not in sys.path]
        importlib.invalidate_caches()
    return importlib.util.find_spec("torch") is not None


def _prepare() -> None:
    if not _has_torch():
        raise SystemExit(f"fusedtricks: torch is needed to build; install it first, for example {DEFAULT_TORCH}.")
    # so that ninja is found next to an interpreter whose environment is not activated
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), sysconfig.get_path("scripts")])


def _requires(hook, config_settings) -> list[str]:
    return hook(config_settings) if _has_torch() else [DEFAULT_TORCH]


def get_requires_for_build_wheel(config_settings=None):
    return _requires(build_meta.get_requires_for_build_wheel, config_settings)


def get_requires_for_build_editable(config_settings=None):
    return _requires(build_meta.get_requires_for_build_editable, config_settings)


def get_requires_for_build_sdist(config_settings=None):
    return []


def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    _prepare()
    return build_meta.prepare_metadata_for_build_wheel(metadata_directory, config_settings)


def prepare_metadata_for_build_editable(metadata_directory, config_settings=None):
    _prepare()
    return build_meta.prepare_metadata_for_build_editable(metadata_directory, config_settings)


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    _prepare()
    for leftover in Path("build").glob("lib*"):  # otherwise the wheel would contain files of earlier builds
        shutil.rmtree(leftover)
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    _prepare()
    return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)


def build_sdist(sdist_directory, config_settings=None):
    return build_meta.build_sdist(sdist_directory, config_settings)
