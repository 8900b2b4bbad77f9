"""Fuses whole models: `fuse`, `unfuse`, `report`, and the backend of `torch.compile`."""

from .model import fuse, report, unfuse
from .report import Entry, Report

__all__ = ["Entry", "Report", "fuse", "report", "unfuse"]
