"""Fuses whole models: `fuse`, `unfuse`, `report`, and the backend of `torch.compile`.

The way of a model: `model` goes through its modules; `planning` decides, for each, which modules' insides a chain
needs, has `tracing` make a graph of its forward (under the eyes of `watching`), has `rewrite` replace what `chains`
found, and compiles it to a plan. `kinds` says which layer a node is, `chains` which layers follow each other, and
`certainty`, with `aliases`, whether they may become one; `calls` makes the call. `blocks` runs the plan instead of the
user's forward, as long as its guards hold. The graphs call `run_time`, `run_tail` and `masks`, which ask `members`
what the layers are by then. `swaps` are the layers replaced one for one.
"""

from .model import fuse, report, unfuse
from .report import Entry, Report

__all__ = ["Entry", "Report", "fuse", "report", "unfuse"]
