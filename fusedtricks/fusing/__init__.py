"""Fuses whole models: `fuse`, `unfuse`, `report`, and the backend of `torch.compile`.

How it works: `model` walks through a model's modules. For each of them, `planning` decides which inner modules to
inline, traces its forward to a graph with `tracing` (monitored by `watching`), replaces the chains with `rewrite`, and
compiles the graph to a plan. `kinds` says which layer a node is, `chains` which layers follow each other, and
`certainty`, with `aliases`, whether fusing them is safe; `calls` creates the calls. `blocks` runs the plan instead of
the user's forward while its guards hold. The graphs call `run_time`, `run_tail` and `masks`, which look up the layers'
current state in `members`. `swaps` holds the layers that are replaced one for one.
"""

from .model import fuse, report, unfuse
from .report import Entry, Report

__all__ = ["Entry", "Report", "fuse", "report", "unfuse"]
