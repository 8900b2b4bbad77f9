"""The `torch.compile` backend "fusedtricks": runs Dynamo's graph with fused chains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.fx import GraphModule

from .graph.rewrite import Singles, rewrite


def backend(graph_module: GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
    """The backend of `torch.compile(model, backend="fusedtricks")`, which works without importing this package.

    Unlike a module trace, Dynamo handles control flow (with guards), so every chain in the program is found, by the
    same matcher as in `fuse`. No code is generated: the graph's operators run eagerly, forward and backward, and shapes
    may change.
    """
    rewrite(graph_module.graph, dict(graph_module.named_modules()), Singles())
    graph_module.recompile()
    return graph_module.forward
