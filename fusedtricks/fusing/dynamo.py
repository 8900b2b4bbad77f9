"""The backend "fusedtricks" of `torch.compile`: Dynamo's graph with fused chains, run as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.fx import GraphModule

from .rewrite import Singles, rewrite


def backend(graph_module: GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
    """`torch.compile(model, backend="fusedtricks")`, which needs no import of this package.

    Dynamo sees what a trace of a module cannot: control flow, decided and guarded; so every chain in the program is
    found, by the same matcher as `fuse`'s. Nothing is generated: the graph's operators run eagerly, forward and
    backward, with shapes that may change.
    """
    rewrite(graph_module.graph, dict(graph_module.named_modules()), Singles())
    graph_module.recompile()
    return graph_module.forward
