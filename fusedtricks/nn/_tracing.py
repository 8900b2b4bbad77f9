"""What our modules are in a `torch.fx` trace: one call of a module each, as stock's are."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.fx import Proxy

__all__ = ["Proxy", "traced"]


def traced(module: nn.Module, input: Any, *arguments: Any, **keywords: Any) -> Any:
    """The call of a module as a node of the graph that is being traced.

    A tracer that does not know our modules follows their forwards. There, `training` and everything else would be
    frozen as it is now, which stock's modules, being leaves, are not.
    """
    path = input.tracer.path_of_module(module)
    return input.tracer.create_proxy("call_module", path, (input, *arguments), keywords)
