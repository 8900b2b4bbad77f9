"""What `fuse` did to a model, and what it left and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


class Entry(NamedTuple):
    """One line of a report."""

    where: str  # name of the module whose forward contains it, "" for the model itself
    what: str  # the members' names in that forward
    reason: str = ""  # why it was left unchanged


@dataclass
class Report:
    """What `fuse` did to a model.

    Attributes:
        chains: layers fused into one call.
        singles: layers replaced one for one.
        left: with reasons: BatchNorms in no chain, chains and activations that might not give the same results, and
            modules whose forward could not be rewritten.
        recompute: the context that the model's forward runs in, such as "recompute(depth=1)"; "" for none.
    """

    chains: list[Entry] = field(default_factory=list)
    singles: list[Entry] = field(default_factory=list)
    left: list[Entry] = field(default_factory=list)
    recompute: str = ""

    def __str__(self) -> str:
        chains, layers = _count(self.chains, "chain"), _count(self.singles, "layer")
        lines = [f"{chains} fused, {layers} replaced, {len(self.left)} left"]
        for title, entries in (("fused", self.chains), ("replaced", self.singles), ("left", self.left)):
            width = max((len(entry.where) for entry in entries), default=0)
            for where, what, reason in entries:
                lines.append(
                    f"  {title:<8}  {where:<{width}}  {what}{': ' if what and reason else ''}{reason}".rstrip()
                )
        if self.recompute:
            lines.append(f"  {self.recompute}")
        return "\n".join(lines)


def _count(entries: list[Entry], what: str) -> str:
    return f"{len(entries)} {what}{'' if len(entries) == 1 else 's'}"
