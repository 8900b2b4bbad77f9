"""Which tensors there are kernels for, and which calls went to stock PyTorch because there are none."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .. import _build_info

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
DEVICES = {"cpu", "meta", *(name for name in _build_info.backends if name == "cuda")}

_lock = threading.Lock()
_fallbacks: Counter[str] = Counter()


def fallbacks() -> dict[str, int]:
    """How often a function or module has run stock's composition because there is no kernel for its tensors.

    Counts the calls of this process, keyed by function and reason, for example "activation(relu): dtype torch.int64".
    With `FUSEDTRICKS_STRICT=1` in the environment such calls raise NotImplementedError instead. Neither is done for
    what `torch.compile` traces.
    """
    with _lock:
        return dict(_fallbacks)


def note_fallback(call: str, reason: str) -> None:
    """Counts a call that stock's composition is about to answer.

    Raises:
        NotImplementedError: `FUSEDTRICKS_STRICT` is set to anything but 0.
    """
    if os.environ.get("FUSEDTRICKS_STRICT", "0") not in ("", "0"):
        names = [str(dtype).removeprefix("torch.") for dtype in DTYPES]
        raise NotImplementedError(
            f"{call}: there is no kernel for {reason}, and FUSEDTRICKS_STRICT forbids stock; kernels take "
            f"{', '.join(names[:-1])} or {names[-1]} in dense tensors on {', '.join(sorted(DEVICES))}"
        )
    with _lock:
        _fallbacks[f"{call}: {reason}"] += 1


def why_no_kernel(tensors: Sequence[Tensor | None]) -> str:
    """Why there is no kernel for a call with these tensors, or "". Of the first, the dtype counts too."""
    first = True
    for tensor in tensors:
        if tensor is None:
            continue
        if first and tensor.dtype not in DTYPES:
            return f"dtype {tensor.dtype}"
        if reason := _why_not_dense(tensor):
            return reason
        first = False
    return ""


def _why_not_dense(tensor: Tensor) -> str:
    if tensor.device.type not in DEVICES:
        return f"device {tensor.device.type}"
    if not torch.compiler.is_compiling() and tensor.is_neg():
        return "views that negate"
    if tensor.is_nested:
        return "nested tensors"
    if tensor.layout is not torch.strided:
        return f"layout {tensor.layout}"
    return f"the tensor subclass {type(tensor).__name__}" if _has_operators_of_its_own(tensor) else ""


def _has_operators_of_its_own(tensor: Tensor) -> bool:
    """Whether operators on a tensor are run by its class, which may know stock's alone."""
    kind: Any = type(tensor)
    if kind in (Tensor, nn.Parameter):
        return False
    if is_traceable_wrapper_subclass(tensor):
        return True
    if torch.compiler.is_compiling() or kind.__module__.startswith("torch._subclasses."):
        return False  # the tensors of tracing, which know every operator
    return kind.__torch_dispatch__ is not torch._C._disabled_torch_dispatch_impl
