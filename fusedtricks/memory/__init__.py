"""Memory: what is kept for the backward, how to keep less, and what becomes of freed memory."""

from .compare import memory_report
from .freed import keep_freed_memory
from .recompute import recompute
from .report import MemoryReport

__all__ = ["MemoryReport", "keep_freed_memory", "memory_report", "recompute"]
