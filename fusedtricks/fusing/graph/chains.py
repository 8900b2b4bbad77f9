"""Finds chains in a graph: layers that become one call, each used only by the next.

`AFTER` says which layers may follow each other; `legality` says whether fusing a chain is safe.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch.fx import Graph, Node

from . import legality
from .aliases import Modules, is_used_once
from .chain import Chain, Step
from .kinds import (
    ACTIVATION,
    ADDITION,
    DROP_PATH,
    DROPOUT,
    FRACTIONAL_POOL,
    IDENTITY,
    LINEAR,
    MAX_POOL,
    NORM,
    RANDOM,
    kind_of,
    operands,
    writes,
)

START, END = "", "end"
AFTER: dict[str, dict[str, str]] = {
    START: {NORM: "norm", LINEAR: "linear", ACTIVATION: "act", DROPOUT: "drop", DROP_PATH: "path"},
    "norm": {ADDITION: "norm add", ACTIVATION: "norm act", DROPOUT: END},
    "norm add": {ACTIVATION: "norm add act", DROPOUT: END},
    "norm act": {DROPOUT: END, MAX_POOL: END},
    "norm add act": {DROPOUT: END},
    "linear": {ACTIVATION: "linear act", DROPOUT: "tail"},
    "linear act": {DROPOUT: "tail"},
    "act": {DROPOUT: "tail", FRACTIONAL_POOL: END},
    "drop": {ADDITION: END},
    "tail": {ADDITION: END},
    "path": {ADDITION: END},
    END: {},
}
"""The states of a chain: for each state and next layer, the following state. Identities do not change the state."""

WHOLE = {"norm add", "norm act", "norm add act", "tail", "path", END}
"""States in which a chain may end."""

_HEADS = ((NORM,), (LINEAR,), (ACTIVATION,), (DROPOUT, DROP_PATH))
"""Layers that a chain can start with, in order of priority if two chains could claim the same layer."""


@dataclass
class Left:
    """A BatchNorm or chain that is left unchanged, and why."""

    chain: Chain
    reason: str


@dataclass
class Found:
    """The chains of a graph, and what is left unchanged."""

    chains: list[Chain] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)


def find_chains(graph: Graph, modules: Modules, dropout: bool) -> Found:
    """All chains of a graph in graph order, and the BatchNorms and chains left unchanged.

    Args:
        graph: from `reading` or Dynamo.
        modules: the graph's modules by name.
        dropout: include layers that draw random numbers.
    """
    found, taken = Found(), set[Node]()
    for heads in _HEADS:
        for node in graph.nodes:
            kind = kind_of(node, modules)
            if kind not in heads or node in taken:
                continue
            candidates, reason = _grow(Step(kind, node), modules, taken, dropout)
            chain, obstacle = _certain(candidates, modules)
            if chain:
                found.chains.append(chain)
                taken.update(chain.nodes)
            elif obstacle or kind == NORM:
                found.left.append(Left((candidates or [Chain((Step(kind, node),))])[0], obstacle or reason))
    order = {node: i for i, node in enumerate(graph.nodes)}
    found.chains.sort(key=lambda chain: order[chain.head])
    found.left.sort(key=lambda left: order[left.chain.head])
    return found


def follows(state: str, kind: str, dropout: bool) -> str:
    """The state of a chain after one more layer; "" if it cannot continue with that layer."""
    return AFTER[state].get(kind, "") if dropout or kind not in RANDOM else ""


def _grow(head: Step, modules: Modules, taken: set[Node], dropout: bool) -> tuple[list[Chain], str]:
    """All chains that begin with `head`, longest first, and why there is no longer one."""
    state = follows(START, head.kind, dropout)
    if not state:
        return [], ""
    steps = [head]
    chains = [Chain((head,))] if state in WHOLE else []
    reason = "nothing that can be fused follows it"
    while AFTER[state]:
        here = steps[-1].node
        if len(here.users) != 1:
            reason = "its result is used more than once" if here.users else "its result is not used"
            break
        user = next(iter(here.users))
        if user in taken:
            reason = "the addition after it belongs to another chain"
            break
        kind, side = kind_of(user, modules), 0
        if kind == ADDITION:
            a, b = operands(user) or (here, here)
            if a is not here and writes(user, modules) and not is_used_once(a, modules):
                reason = "it is added in place to another tensor"
                break
            kind, side = kind if a is not b else "", int(a is here)
        following = state if kind == IDENTITY else follows(state, kind, dropout)
        if not following:
            break
        steps.append(Step(kind, user, side))
        state = following
        if kind != IDENTITY and state in WHOLE:
            chains.insert(0, Chain(tuple(steps)))
    return chains, reason


def _certain(candidates: list[Chain], modules: Modules) -> tuple[Chain | None, str]:
    """The longest chain that certainly gives the same as its members, or the reason why there is none."""
    reason = ""
    for chain in candidates:
        kept = legality.what_is_kept_may_change(chain, modules)
        obstacle = kept or legality.obstacle(chain, modules)
        if not obstacle:
            return chain, ""
        reason = reason or obstacle
        if not kept and not _is_longer_than_needed(chain):
            break
    return None, reason


def _is_longer_than_needed(chain: Chain) -> bool:
    """Whether to try a chain again without its last layer if something prevents fusing it."""
    return chain.steps[-1].kind in (DROPOUT, MAX_POOL) or chain.steps[0].kind != NORM
