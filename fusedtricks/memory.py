"""Keeps freed memory in the process, so that large results do not pay for fresh pages."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_LARGEST = 2**31 - 1  # mallopt takes an int


def keep_freed_memory(threshold_bytes: int = 1 << 30) -> bool:
    """Tells the C library to keep freed blocks instead of returning them to the system.

    By default glibc maps each block above 32 MiB afresh and unmaps it when it is freed, so every large tensor
    pays one page fault for each 4 KiB, which takes longer than the arithmetic of a fused layer. After this
    call freed blocks are used again. It concerns everything the process allocates through malloc (all of
    torch's CPU tensors, fused or stock), cannot be undone, and has a price: memory once used stays resident
    until the process ends, and glibc takes some ten allocations of a size to settle, so that several times
    what is in use at once may be held. CUDA memory is not concerned. Call it before the first large tensor.

    Args:
        threshold_bytes: blocks above this size are still mapped and unmapped one by one; below 2**31.

    Returns:
        Whether the C library took both settings: False where it is not glibc, or where it refuses the size.
    """
    if not 0 < threshold_bytes <= _LARGEST:
        raise ValueError(f"threshold_bytes is {threshold_bytes}, but has to lie between 1 and {_LARGEST}")
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    settings = ((_M_MMAP_THRESHOLD, threshold_bytes), (_M_TRIM_THRESHOLD, _LARGEST))
    return all(libc.mallopt(name, value) == 1 for name, value in settings)
