"""Fuses whole models: `fuse`, `unfuse`, `report`, and the backend of `torch.compile`.

How it works: `model` walks through a model's modules. For each of them, `planning` decides which inner modules to
inline, and `reading` turns its forward into a graph, with the assumptions that the graph rests on; it interprets the
source and runs none of it. `rewrite` replaces the chains: `kinds` says which layer a node is, `chains` which layers
follow each other, and `certainty`, with `aliases`, whether fusing them is safe; `calls` creates the calls. `blocks`
runs the graph instead of the user's forward while its assumptions hold. The graphs call `run_time`, `run_tail` and
`masks`, which look up the layers' current state in `members`. `swaps` holds the layers that are replaced one for one.
"""

from .model import fuse, report, unfuse
from .report import Entry, Report

__all__ = ["Entry", "Report", "fuse", "report", "unfuse"]
