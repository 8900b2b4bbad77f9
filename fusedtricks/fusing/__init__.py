"""Fuses whole models: `fuse`, `unfuse`, `report`, and the backend of `torch.compile`.

How it works: `model` walks through a model's modules. For each of them, `planning` decides which inner modules to
inline, and `reading` turns its forward into a graph, with the assumptions that the graph rests on; it interprets the
source and runs none of it. `graph` finds the chains and rewrites them where that is legal. `install` writes graph and
assumptions as one function and puts it into the module. The graphs call what is in `running`; `layers` knows layers.
"""

from .model import fuse, report, unfuse
from .report import Entry, Report

__all__ = ["Entry", "Report", "fuse", "report", "unfuse"]
