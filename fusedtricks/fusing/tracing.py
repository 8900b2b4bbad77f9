"""Traces the forward of one module by `torch.fx`, strictly: what a graph would not repeat is refused.

A graph holds the operations that ran, and nothing else. Whatever else decided them or happened meanwhile (a coin, a
counter, gradients switched off) would be frozen or lost, so a trace in which something of the kind is seen is given up.
By the module's own settings it may decide: a plan compares them when it is used.
"""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import pairwise
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.fx import Graph, Node, Proxy, Tracer

from .aliases import IN_PLACE_OPERATORS
from .watching import NotTraceable, is_library, module_of, unchanged, without_effects

SETTINGS = (bool, int, float, str, type(None))
"""Types of values that a forward may decide by, and that can be compared later."""


def trace(module: nn.Module, inline: Collection[str] = ()) -> Graph:
    """The graph of a module's forward, in which the modules it calls are nodes, but for those in `inline`.

    Arguments with a simple default have that value in the graph and are not among its inputs.

    A function that it calls and that cannot be traced, as where it takes decisions, is a node too and runs as it is.

    Raises:
        NotTraceable: the forward is no straight sequence of operations on tensors.
    """
    functions: list[FunctionType] = []
    with unchanged(module):
        while True:
            try:
                with _without_modes_of_members(module, inline), without_effects():
                    return _BlockTracer(inline, functions).trace(module)
            except Exception as error:
                function = _function_that_failed(error)
                if function is None or function in functions:
                    raise error if isinstance(error, NotTraceable) else NotTraceable(_first_sentence(error)) from error
                functions.append(function)


@contextmanager
def _without_modes_of_members(root: nn.Module, inline: Collection[str]) -> Iterator[None]:
    """Within it the modules that are nodes have no `training`: it may become another than the root's at any time."""
    inlined = [root, *(root.get_submodule(name) for name in inline)]
    members = [vars(m) for m in root.modules() if "training" in vars(m) and not any(m is other for other in inlined)]
    modes = [member.pop("training") for member in members]
    try:
        yield
    finally:
        for member, mode in zip(members, modes, strict=True):
            member["training"] = mode


def _function_that_failed(error: Exception) -> FunctionType | None:
    """The first function of its user's that was called, by a global name, on the way to an error."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for caller, frame in pairwise(frames):
        if is_library(module_of(caller)):
            continue
        named = [caller.f_globals.get(name) for name in caller.f_code.co_names]
        called = [f for f in named if isinstance(f, FunctionType) and f.__code__ is frame.f_code]
        if len(called) == 1:  # else it is not certain which
            return called[0]
    return None


def _first_sentence(error: Exception) -> str:
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if isinstance(error, AttributeError) and text.endswith("no attribute 'training'"):
        return "its forward asks for the mode of another module"
    if "control flow" in text:
        return "its forward takes decisions by the values or shapes of tensors"
    return f"its forward cannot be traced: {text[:150]}"


class _TensorProxy(Proxy):
    """A value whose type its user may not ask for, but for an input's, which is a tensor."""

    @property
    def _apparent_class(self) -> type:
        if is_library(sys._getframe(1).f_globals.get("__name__", "")):
            return _TensorProxy
        if self.node.op == "placeholder":
            return torch.Tensor
        raise NotTraceable("its forward asks for the type of an intermediate value")

    if not TYPE_CHECKING:
        __class__ = _apparent_class


def _in_place(operation: Any) -> Any:
    """The method of a proxy that records `x += y` and the like, which `torch.fx` takes for `x = x + y`."""

    def method(self: Proxy, other: Any) -> Proxy:
        return self.tracer.create_proxy("call_function", operation, (self, other), {})

    return method


for _name, _operation in IN_PLACE_OPERATORS.items():
    setattr(_TensorProxy, f"__{_name}__", _in_place(_operation))


class _BlockTracer(Tracer):
    proxy_buffer_attributes = True

    def __init__(self, inline: Collection[str], functions: Collection[FunctionType]) -> None:
        super().__init__(autowrap_functions=tuple(functions))
        self._inline = inline
        self._mode = _mode()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self._inline

    def proxy(self, node: Node) -> Proxy:
        return _TensorProxy(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> Node:
        if _mode() != self._mode:
            raise NotTraceable("its forward switches gradients, inference or autocast on or off")
        return super().create_node(*args, **kwargs)

    def get_fresh_qualname(self, prefix: str) -> str:
        raise NotTraceable("its forward makes a tensor of its own")

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        return root_fn, [self.root, *(self._argument(p) for p in list(_parameters(root_fn)))]

    def _argument(self, parameter: inspect.Parameter) -> Any:
        if parameter.default is inspect.Parameter.empty:
            return self.create_proxy("placeholder", parameter.name, (), {})
        return parameter.default


def _mode() -> tuple[bool, ...]:
    autocast = (torch.is_autocast_enabled(device) for device in ("cpu", "cuda"))
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *autocast


def _parameters(forward: Any) -> Iterator[inspect.Parameter]:
    """The arguments of a forward, without self and without *args and **kwargs, which stay empty."""
    for parameter in list(inspect.signature(forward).parameters.values())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.kind is parameter.KEYWORD_ONLY:
            if parameter.default is parameter.empty:
                raise NotTraceable(f"its forward needs the keyword {parameter.name}")
            continue
        if parameter.default is not parameter.empty and not isinstance(parameter.default, SETTINGS):
            raise NotTraceable(f"the default of {parameter.name} is no simple value")
        yield parameter
