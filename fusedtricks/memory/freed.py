"""Keeps freed memory in the process, so that large results do not cause page faults in every call."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h
_LARGEST = 2**31 - 1  # mallopt takes an int


def keep_freed_memory(threshold_bytes: int = 1 << 30) -> bool:
    """Tells the C library to keep freed blocks instead of returning them to the system.

    By default glibc maps every block above 32 MiB anew and unmaps it when it is freed. So every large tensor causes
    one page fault per 4 KiB, which takes longer than the arithmetic of a fused layer. After this call freed blocks are
    reused. This affects everything the process allocates through malloc (all of torch's CPU tensors, fused or stock)
    and cannot be undone. The price: memory once used stays resident until the process ends, and because glibc takes
    about ten allocations of a size to settle, it may hold several times the memory in use. CUDA memory is not
    affected. Call this before creating the first large tensor.

    Args:
        threshold_bytes: larger blocks are still mapped and unmapped one by one; from 1 to 2**31 - 1.

    Returns:
        True if the C library accepted both settings; False if it is not glibc or refuses the size.
    """
    if not 0 < threshold_bytes <= _LARGEST:
        raise ValueError(f"threshold_bytes is {threshold_bytes}, but must be between 1 and {_LARGEST}")
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    settings = ((_M_MMAP_THRESHOLD, threshold_bytes), (_M_TRIM_THRESHOLD, _LARGEST))
    return all(libc.mallopt(name, value) == 1 for name, value in settings)
