"""A chain of layers in a graph."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from torch.fx import Node

from .kinds import ADDITION, operands, source_of, writes


class Step(NamedTuple):
    """A layer of a chain."""

    kind: str
    node: Node
    side: int = 0  # for an addition: index of the operand that is the residual


@dataclass(frozen=True)
class Chain:
    """Layers to fuse, in order, including identities between them."""

    steps: tuple[Step, ...]

    def step(self, kind: str) -> Step | None:
        return next((step for step in self.steps if step.kind == kind), None)

    def node(self, kind: str) -> Node | None:
        step = self.step(kind)
        return step.node if step else None

    @property
    def nodes(self) -> list[Node]:
        return [step.node for step in self.steps]

    @property
    def head(self) -> Node:
        return self.steps[0].node

    @property
    def end(self) -> Node:
        return self.steps[-1].node

    @property
    def source(self) -> Node:
        """The chain's current input, which changes if the chain that computes it is rewritten."""
        return source_of(self.head)

    @property
    def residual(self) -> Node | None:
        """The current residual, or None."""
        addition = self.step(ADDITION)
        added = operands(addition.node) if addition else None
        return added[addition.side] if addition and added else None

    @property
    def how_it_adds(self) -> tuple[bool, bool]:
        """The fields of `members.Addition` as a plain tuple, which a graph can hold."""
        addition = self.step(ADDITION)
        return (addition.side == 0, writes(addition.node, {})) if addition else (False, False)

    def between(self, first: Node) -> Iterator[Node]:
        """The nodes from a member to the chain's end that do not belong to the chain."""
        node, own = first, set(self.nodes)
        while node is not self.end:
            if node not in own:
                yield node
            node = node.next
