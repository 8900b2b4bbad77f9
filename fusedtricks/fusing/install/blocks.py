"""Modules that run a rewritten graph, or fall back on the user's forward.

Such a module's class is derived from the user's class and has the same name. Everything else stays: attributes,
members, parameters, hooks. The graph runs if all that it was made for still holds; otherwise the user's forward runs.
"""

from __future__ import annotations

import copyreg
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.fx import Graph

from ...memory.recompute import recompute
from ..graph.rewrite import Rewritten, Singles
from ..layers.classes import STOCK, fused_class_of, set_class, stock_class
from ..running.statements import Unexpected
from .code import Otherwise
from .scriptable import restore, scriptable_class

_PLANS = "_fusedtricks_plans"
_RECOMPUTE = "_fusedtricks_recompute"


class Plan:
    """A rewritten forward for one value of `training`. It holds no modules, so copies of a module share it."""

    def __init__(self, graph: Graph, forward: Any, function: Callable[..., Any], done: Rewritten) -> None:
        self._signature = inspect.signature(forward)
        self._is_wrapper = hasattr(forward, "__wrapped__")
        self.inputs = len([node for node in graph.nodes if node.op == "placeholder"])
        self.forward, self.done = function, done

    def has_work(self) -> bool:
        """Whether the plan differs from the user's forward."""
        return bool(self.done.chains or self.done.singles)

    def bind(self, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> tuple[Any, ...] | None:
        """The graph's inputs; None if an argument does not have the default value that the graph was made for."""
        if self._is_wrapper:  # its decorator may look at how the arguments are given
            return None
        try:
            given = self._signature.bind(None, *arguments, **keywords).arguments
        except TypeError:  # the user's forward will raise it
            return None
        inputs = []
        for parameter in list(self._signature.parameters.values())[1:]:
            if parameter.default is parameter.empty and parameter.name in given:
                if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                    return None
                inputs.append(given[parameter.name])
            elif given.get(parameter.name, parameter.default) is not parameter.default:
                return None
        return tuple(inputs)


class Plans:
    """The plans of a block, by the value of `training`.

    A pickle has none: they are made again, from the source as it is then, when the block is first called.
    """

    def __init__(self, make: Callable[[nn.Module, Singles], dict[bool, Plan]], singles: Singles) -> None:
        self._make, self._singles = make, singles
        self.by_mode: Mapping[bool, Plan] | None = None

    def set(self, plans: Mapping[bool, Plan]) -> Plans:
        self.by_mode = {training: plan for training, plan in plans.items() if plan.has_work()}
        return self

    def read(self, block: nn.Module) -> Mapping[bool, Plan]:
        """Makes the plans, except while torch.compile follows the block's forward."""
        if torch.compiler.is_compiling():
            return {}
        return self.set(self._make(block, self._singles)).by_mode or {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Plans:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Plans, (self._make, self._singles)


def is_fused(module: nn.Module) -> bool:
    return _PLANS in vars(module)


def set_plans(module: nn.Module, plans: Plans) -> None:
    """Makes a module run its plans that differ from its forward."""
    module.__dict__[_PLANS] = plans
    set_class(module, _fused_class(stock_class(type(module))))


def recompute_of(module: nn.Module) -> recompute | None:
    """The context that a module's forward runs in."""
    return vars(module).get(_RECOMPUTE)


def set_recompute(module: nn.Module, setting: recompute | None) -> str:
    """Makes a module's forward run in a context, or no longer. Returns the reason if that cannot be, else ""."""
    module.__dict__.pop(_RECOMPUTE, None)
    stock = stock_class(type(module))
    if setting is None:
        return ""
    if isinstance(module, (torch.jit.ScriptModule, torch.fx.GraphModule)):
        return "its class is not Python's: use `with fusedtricks.recompute():` around its call"
    if reason := prepare(stock):
        return reason
    module.__dict__[_RECOMPUTE] = setting
    set_class(module, _fused_class(stock))
    return ""


def remove_plans(module: nn.Module) -> None:
    """Restores the user's class of a module, also below a class that something else has derived since."""
    module.__dict__.pop(_PLANS, None)
    module.__dict__.pop(_RECOMPUTE, None)
    restore(module)
    kind: Any = type(module)
    if any(STOCK in vars(base) for base in kind.__mro__):
        set_class(module, _without_fused(kind))


def _without_fused(kind: Any) -> Any:
    if not any(STOCK in vars(base) for base in kind.__mro__):
        return kind
    if STOCK in vars(kind):
        return stock_class(kind)
    own = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
    return type(kind)(kind.__name__, tuple(_without_fused(base) for base in kind.__bases__), own)


def prepare(stock: Any) -> str:
    """Checks that `set_plans` will work for modules of a class. Returns the reason if not, else ""."""
    noticed = [
        c for c in stock.__mro__ if "__init_subclass__" in vars(c) and c.__module__ not in ("builtins", "typing")
    ]
    if noticed or type(stock) is not type:
        return "its class takes notice of classes derived from it"
    try:
        _fused_class(stock)
    except TypeError as error:
        return f"its class cannot be derived from: {error}"
    return ""


def _fused_class(stock: Any) -> Any:
    return fused_class_of(stock) or _derive(stock)


def _derive(stock: Any) -> Any:
    @functools.wraps(stock.forward)
    def forward(self: nn.Module, *arguments: Any, **keywords: Any) -> Any:
        setting = self.__dict__.get(_RECOMPUTE)
        if setting is None or torch.compiler.is_compiling():
            return planned(self, *arguments, **keywords)
        with setting:
            return planned(self, *arguments, **keywords)

    def planned(self: nn.Module, *arguments: Any, **keywords: Any) -> Any:
        own = self.__dict__
        plans = own.get(_PLANS)
        if plans is not None:
            by_mode = plans.by_mode
            plan = (plans.read(self) if by_mode is None else by_mode).get(own.get("training"))
            if plan is not None:
                inputs: tuple[Any, ...] | None = arguments
                if keywords or len(arguments) != plan.inputs:
                    inputs = plan.bind(arguments, keywords)
                if inputs is not None:
                    try:
                        result = plan.forward(self, *inputs)
                    except Unexpected:
                        result = Otherwise
                    if result is not Otherwise:
                        return result
        return stock.forward(self, *arguments, **keywords)

    def reduce(self: nn.Module, protocol: Any) -> Any:
        result = stock.__reduce_ex__(self, protocol)
        if not isinstance(result, tuple):
            return result
        made, *rest = result
        if made is copyreg._reconstructor and rest[0][0] is fused:  # type: ignore[attr-defined]  # protocols 0 and 1
            return (_reconstruct, (stock, *rest[0][1:]), *rest[1:])
        if made is copyreg.__newobj__ and rest[0][0] is fused:  # type: ignore[attr-defined]
            return (_new, (stock, *rest[0][1:]), *rest[1:])
        return (stock, *rest) if made is fused else result

    namespace = {
        "__module__": stock.__module__,
        "__qualname__": stock.__qualname__,
        "__doc__": stock.__doc__,
        "__reduce_ex__": reduce,
        "__prepare_scriptable__": _scriptable,
        STOCK: stock,
        "forward": forward,
    }
    fused: Any = type(stock)(stock.__name__, (stock,), namespace)
    return fused


def _scriptable(module: nn.Module) -> nn.Module:
    """The module as TorchScript compiles it: with the user's forward. When it is next called, it is fused again."""
    fused = type(module)
    set_class(module, scriptable_class(fused, stock_class(fused)))
    return module


def _new(stock: Any, *arguments: Any) -> Any:
    """Creates an empty module of the fused class of `stock`, for unpickling."""
    fused = _fused_class(stock)
    return fused.__new__(fused, *arguments)


def _reconstruct(stock: Any, base: Any, state: Any) -> Any:
    return copyreg._reconstructor(_fused_class(stock), base, state)  # type: ignore[attr-defined]
