"""Fused training layers for PyTorch: the same numbers as the stock layers in fewer passes over memory."""

from fusedtricks._load import load_libraries

load_libraries()

from fusedtricks import eager, functional, nn  # noqa: E402  (they need the loaded libraries)
from fusedtricks._build_info import version as __version__  # noqa: E402
from fusedtricks.converting import stock_keys, to_fused, to_stock  # noqa: E402
from fusedtricks.fusing import fuse, report, unfuse  # noqa: E402
from fusedtricks.memory import keep_freed_memory, memory_report, recompute  # noqa: E402

__all__ = [
    "__version__",
    "eager",
    "functional",
    "fuse",
    "keep_freed_memory",
    "memory_report",
    "nn",
    "recompute",
    "report",
    "stock_keys",
    "to_fused",
    "to_stock",
    "unfuse",
]
