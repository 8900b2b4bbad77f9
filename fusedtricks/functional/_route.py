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

from .. import _C
from ._arguments import as_number
from ._forked import on_one_thread_if_forked
from ._kernels import note_fallback, why_no_kernel

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
        stock: the same for tensors that there are no kernels for; as close to stock as possible, also in its errors.
        numbers: names of the arguments that are numbers; what stock takes for one becomes a Python number.
        optional_numbers: the same for arguments that may be None.
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
        stock: Callable[..., Any] | None = None,
        numbers: Sequence[str] = (),
        optional_numbers: Sequence[str] = (),
        shortcut: Callable[..., Any] = _nothing,
        is_exported: Callable[..., bool] = _never,
    ) -> None:
        parameters = inspect.signature(function).parameters.values()
        self.function = function
        self.tensors = tuple(tensors)
        self.check = check
        self.operator = operator
        self.composition = composition
        self.stock = stock or composition
        self.numbers = tuple(numbers)
        self.optional_numbers = tuple(optional_numbers)
        self.shortcut = shortcut
        self.is_exported = is_exported
        self.names = tuple(parameter.name for parameter in parameters)
        self.positional = sum(parameter.kind is not parameter.KEYWORD_ONLY for parameter in parameters)


def otherwise(route: Route, *arguments: Any) -> Any:
    """Runs a call that the fast path did not handle; `arguments` are all of the function's, in its order."""
    return on_one_thread_if_forked(_otherwise, route, *arguments)


def _otherwise(route: Route, *arguments: Any) -> Any:
    named = dict(zip(route.names, arguments, strict=True))
    tensors = tuple(named[name] for name in route.tensors)
    if has_torch_function(tensors):
        by_name = dict(zip(route.names[route.positional :], arguments[route.positional :], strict=True))
        return handle_torch_function(route.function, tensors, *arguments[: route.positional], **by_name)
    _check_types(route, named)
    route.check(**named)
    result = route.shortcut(**named)
    if result is not None:
        return result
    compiling = torch.compiler.is_compiling()
    plain = not compiling and _C.has_kernels(*tensors)
    if not plain and (reason := why_no_kernel(tensors)):
        if not compiling:
            note_fallback(_describe(route, named), reason)
        return route.stock(**named)
    if compiling and torch.compiler.is_exporting() and route.is_exported(**named):
        return route.composition(**named)
    if not compiling and needs_composition():
        return route.composition(**named)
    return route.operator(**named)


def _check_types(route: Route, named: dict[str, Any]) -> None:
    """TypeError for a number or a flag of another type. Numbers become Python's."""
    op = route.function.__name__
    for name in route.numbers:
        named[name] = as_number(op, name, named[name])
    for name in route.optional_numbers:
        if named[name] is not None:
            named[name] = as_number(op, name, named[name])
    if not isinstance(named.get("training", True), bool):
        raise TypeError(f"{op}(): argument 'training' must be bool, not {type(named['training']).__name__}")


def _describe(route: Route, named: dict[str, Any]) -> str:
    name = route.function.__name__.lstrip("_")
    return f"{name}({named['act']})" if "act" in named else name


def needs_composition() -> bool:
    """Whether a transform that C++ autograd functions do not support is active, or a trace that others shall read."""
    return (
        torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
        or torch._C._is_tracing()
    )
