"""Traces a module's forward with `torch.fx`, strictly: it refuses whatever a graph would not repeat.

A graph contains only the operations that ran. Side effects would be lost and decisions frozen, so a trace is abandoned
if it sees any. A forward may make decisions based on module attributes: these are recorded, and a plan compares them
each time it runs.
"""

from __future__ import annotations

import gc
import inspect
import sys
import traceback
import weakref
from collections import deque
from collections.abc import Collection, Iterator
from itertools import pairwise
from threading import RLock
from types import FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.fx import Graph, Node, Proxy, Tracer
from torch.fx.proxy import Attribute

from .aliases import IN_PLACE_OPERATORS
from .reads import SETTINGS, Reads, recorded
from .watching import NotTraceable, is_library, module_of, unchanged, without_effects

_ONE_AT_A_TIME = RLock()


class Trace(NamedTuple):
    """A graph, and what it assumes.

    Attributes:
        graph: of the forward.
        reads: the attributes read, keyed by the module's name.
        lists: names of the ModuleLists and ModuleDicts whose members were used.
    """

    graph: Graph
    reads: dict[str, dict[str, Any]]
    lists: list[str]


def trace(module: nn.Module, inline: Collection[str] = ()) -> Trace:
    """Traces a module's forward; the modules it calls become nodes, except those in `inline`.

    Arguments with a simple default get that value in the graph and are not graph inputs.
    A called function that cannot be traced, for example because it makes decisions, also becomes a node and runs as is.

    Raises:
        NotTraceable: the forward is not a plain sequence of tensor operations.
    """
    functions: list[FunctionType] = []
    # Meanwhile no other thread may trace or run a module: torch.fx would take that for part of the trace.
    with _ONE_AT_A_TIME, unchanged(module):
        while True:
            try:
                return _trace_once(module, inline, functions)
            except Exception as error:
                function = _function_that_failed(error)
                if function is None or function in functions:
                    raise error if isinstance(error, NotTraceable) else NotTraceable(_first_sentence(error)) from error
                functions.append(function)


def _trace_once(module: nn.Module, inline: Collection[str], functions: Collection[FunctionType]) -> Trace:
    reads = Reads(module)
    tracer = _BlockTracer(inline, functions)
    with torch.enable_grad(), recorded(reads), without_effects():
        graph = tracer.trace(module)
    tracer.proxies_of_parameters.clear()  # torch.fx keeps them in a reference cycle
    if tracer.refused:  # the user's code caught the exception
        raise NotTraceable(tracer.refused)
    _refuse_proxies_that_stay(tracer)
    names = {child: name for name, child in module.named_modules()}
    return Trace(graph, reads.of, [names[child] for child in tracer.lists if child in names])


def _refuse_proxies_that_stay(tracer: _BlockTracer) -> None:
    """Raises if something outside the graph still holds a value of the trace, after removing the value from there."""
    for collect in (lambda: None, gc.collect):
        collect()
        if not any(reference() is not None for reference in tracer.proxies):
            return
    for reference in tracer.proxies:
        for holder in gc.get_referrers(reference()) if reference() is not None else ():
            _take_away(holder, reference)
    raise NotTraceable("its forward keeps a tensor for later")


def _take_away(holder: Any, reference: weakref.ref[Proxy]) -> None:
    if isinstance(holder, dict):
        for key in [key for key, value in holder.items() if value is reference()]:
            del holder[key]
    elif isinstance(holder, (list, deque)):
        kept = [value for value in holder if value is not reference()]
        holder.clear()
        holder.extend(kept)


def _function_that_failed(error: Exception) -> FunctionType | None:
    """The first user function on the traceback of an error that was called through a global name."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for caller, frame in pairwise(frames):
        if is_library(module_of(caller)):
            continue
        named = [caller.f_globals.get(name) for name in caller.f_code.co_names]
        called = [f for f in named if isinstance(f, FunctionType) and f.__code__ is frame.f_code]
        if len(called) == 1:  # otherwise it is ambiguous
            return called[0]
    return None


def _first_sentence(error: Exception) -> str:
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "control flow" in text:
        return "its forward takes decisions by the values or shapes of tensors"
    return f"its forward cannot be traced: {text[:150]}"


class _TensorProxy(Proxy):
    """A value of the graph. Only inputs are known to be tensors; asking for another value's type is refused."""

    def _refuse(self, what: str) -> None:
        self.tracer.refused = f"its forward asks for {what}"  # type: ignore[attr-defined]
        raise NotTraceable(self.tracer.refused)  # type: ignore[attr-defined]

    @property
    def _apparent_class(self) -> type:
        library = str(sys._getframe(1).f_globals.get("__name__", ""))
        if is_library(library) and library != "torch":
            return _TensorProxy
        if self.node.op != "placeholder":
            self._refuse("the type of an intermediate value")
        return torch.Tensor

    if not TYPE_CHECKING:
        __class__ = _apparent_class

    def __getattr__(self, name: str) -> Any:
        if hasattr(torch.Tensor, name):
            return _Attribute(self, name)
        if self.node.op != "placeholder":
            self._refuse(f"{name} of an intermediate value")
        raise AttributeError(f"'Tensor' object has no attribute '{name}'")

    def __str__(self) -> str:
        return _text_of(self)

    def __format__(self, format_spec: str) -> str:
        return _text_of(self)


class _Attribute(Attribute):
    """An attribute or method of a value."""

    def __str__(self) -> str:
        return _text_of(self)

    def __format__(self, format_spec: str) -> str:
        return _text_of(self)


class _Text(str):
    """The text of a value. It may be used in messages, but not for decisions."""

    def _refuse(self, *arguments: Any) -> Any:
        raise NotTraceable("its forward makes decisions based on the text of a value")

    __eq__ = __ne__ = __hash__ = __contains__ = startswith = endswith = split = _refuse  # type: ignore[assignment]


def _text_of(proxy: Proxy) -> str:
    return _Text(repr(proxy))


def _in_place(operation: Any) -> Any:
    """A proxy method that records `x += y` and the like; `torch.fx` itself would record `x = x + y`."""

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
        self.refused = ""
        self.proxies: list[weakref.ref[Proxy]] = []
        self.lists: list[nn.Module] = []
        self.proxies_of_parameters: dict[str, Any] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self._inline

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if type(m).__call__ is not nn.Module.__call__:
            raise NotTraceable(f"its forward calls {type(m).__name__}, which has its own __call__")
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if isinstance(attr_val, (nn.ModuleList, nn.ModuleDict)):
            self.lists.append(attr_val)
        self.proxies_of_parameters = parameter_proxy_cache
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: Node) -> Proxy:
        proxy = _TensorProxy(node, self)
        self.proxies.append(weakref.ref(proxy))
        return proxy

    def to_bool(self, obj: Proxy) -> bool:
        self.refused = "its forward takes decisions by the values or shapes of tensors"
        raise NotTraceable(self.refused)

    def create_arg(self, a: Any) -> Any:
        is_named = isinstance(a, tuple) and hasattr(a, "_fields")
        if isinstance(a, (list, tuple, dict)) and type(a) not in (list, tuple, dict, torch.Size) and not is_named:
            raise NotTraceable(f"its forward creates a {type(a).__name__}")
        return super().create_arg(a)

    def get_fresh_qualname(self, prefix: str) -> str:
        raise NotTraceable("its forward creates a tensor")

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        return root_fn, [self.root, *(self._argument(p) for p in list(_parameters(root_fn)))]

    def _argument(self, parameter: inspect.Parameter) -> Any:
        if parameter.default is inspect.Parameter.empty:
            return self.create_proxy("placeholder", parameter.name, (), {})
        return parameter.default


def _parameters(forward: Any) -> Iterator[inspect.Parameter]:
    """The arguments a forward is traced with: not self, *args, **kwargs or keyword-only arguments with a default."""
    for parameter in list(inspect.signature(forward).parameters.values())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.default is not parameter.empty and not isinstance(parameter.default, SETTINGS):
            raise NotTraceable(f"the default of {parameter.name} is not a simple value")
        if parameter.kind is not parameter.KEYWORD_ONLY:
            yield parameter
        elif parameter.default is parameter.empty:
            raise NotTraceable(f"its forward needs the keyword argument {parameter.name}")
