"""Calls in a forked process; `csrc/ops/one_thread.h` says why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.compiler import is_dynamo_compiling

from .. import _C


def on_one_thread_if_forked(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """Calls a function that runs operators of torch; in a forked process, where their threads are missing, on one."""
    if is_dynamo_compiling() or not _C.is_forked():
        return function(*arguments, **keywords)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return function(*arguments, **keywords)
    finally:
        torch.set_num_threads(threads)
