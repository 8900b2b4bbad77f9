"""Memory: what is kept for the backward, how to keep less, and what becomes of freed memory."""

from .freed import keep_freed_memory
from .recompute import recompute

__all__ = ["keep_freed_memory", "recompute"]
