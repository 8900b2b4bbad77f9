"""How a call is dispatched.

The fast path is a function of `_C`, which parses its arguments itself. For a call it does not handle it returns None
without side effects; then `otherwise` dispatches the call or raises the right error.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.compiler import is_dynamo_compiling
from torch.overrides import handle_torch_function, has_torch_function

__all__ = ["Route", "is_dynamo_compiling", "ops", "otherwise"]

ops = torch.ops.fusedtricks


def _nothing(**arguments: Any) -> Any:
    return None


def _never(**arguments: Any) -> bool:
    return False


class Route:
    """The implementations of one public function. Every callable takes that function's arguments by name.

    Attributes:
        function: the public function, which is passed to `__torch_function__` overrides.
        tensors: names of its tensor arguments.
        check: raises TypeError or ValueError for invalid arguments.
        operator: calls the operator through PyTorch's dispatcher.
        composition: the same in stock PyTorch, for transforms that C++ autograd functions do not support.
        shortcut: the result if there is nothing to compute or stock computes it, else None.
        is_exported: whether models are exported with the composition, so that they need none of our operators.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        tensors: Sequence[str],
        *,
        check: Callable[..., None],
        operator: Callable[..., Any],
        composition: Callable[..., Any],
        shortcut: Callable[..., Any] = _nothing,
        is_exported: Callable[..., bool] = _never,
    ) -> None:
        parameters = inspect.signature(function).parameters.values()
        self.function = function
        self.tensors = tuple(tensors)
        self.check = check
        self.operator = operator
        self.composition = composition
        self.shortcut = shortcut
        self.is_exported = is_exported
        self.names = tuple(parameter.name for parameter in parameters)
        self.positional = sum(parameter.kind is not parameter.KEYWORD_ONLY for parameter in parameters)


def otherwise(route: Route, *arguments: Any) -> Any:
    """Runs a call that the fast path did not handle; `arguments` are all of the function's, in its order."""
    named = dict(zip(route.names, arguments, strict=True))
    tensors = tuple(named[name] for name in route.tensors)
    if has_torch_function(tensors):
        by_name = dict(zip(route.names[route.positional :], arguments[route.positional :], strict=True))
        return handle_torch_function(route.function, tensors, *arguments[: route.positional], **by_name)
    route.check(**named)
    result = route.shortcut(**named)
    if result is not None:
        return result
    compiling = torch.compiler.is_compiling()
    if compiling and torch.compiler.is_exporting() and route.is_exported(**named):
        return route.composition(**named)
    if not compiling and needs_composition():
        return route.composition(**named)
    return route.operator(**named)


def needs_composition() -> bool:
    """Whether a transform that C++ autograd functions do not support is active."""
    return torch._C._functorch.peek_interpreter_stack() is not None or torch.autograd.forward_ad._current_level >= 0
