"""Which library a function comes from."""

from __future__ import annotations

import sys
from types import FunctionType
from typing import Any

_LIBRARIES = {"torch", "fusedtricks", *sys.stdlib_module_names}


def is_library(name: str | None) -> bool:
    """Whether a Python module of that name is library code, not user code."""
    return (name or "").split(".")[0] in _LIBRARIES


def library_of(function: Any) -> str:
    """The Python module that a function was written in, whatever its `__module__` says since."""
    if isinstance(function, FunctionType):
        return str(function.__globals__.get("__name__", ""))
    owner = getattr(function, "__objclass__", None)  # of a method of a class written in C
    return str(getattr(function, "__module__", None) or getattr(owner, "__module__", None) or "torch")
