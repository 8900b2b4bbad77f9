"""Modules that run a rewritten graph, or fall back on the user's forward.

Such a module's class is a subclass of the user's class with the same name, as with `torch.nn.utils.parametrize` and
FSDP. Everything else stays: attributes, members, parameters, hooks. The graph runs if it does the same as the user's
forward; otherwise the user's forward runs.
"""

from __future__ import annotations

import copy
import copyreg
import functools
import inspect
import pickle
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph

from .members import any_global_hooks, has_hooks
from .reads import Absent, is_same
from .rewrite import Rewritten

_PLANS, _STOCK = "_fusedtricks_plans", "_fusedtricks_stock"


class Guard:
    """What a plan assumes about one module of the block.

    Args:
        path: the module's name within the block, "" for the block itself.
        module: the module as it was when the forward was traced.
        reads: the attributes that the forward read, with their values.
        is_part: the plan contains the module's forward and does not call the module, so it must have no hooks and keep
            its type.
        has_members: the plan uses the module's members.
    """

    def __init__(self, path: str, module: nn.Module, reads: dict[str, Any], *, is_part: bool, has_members: bool):
        self.path, self.is_part = path, is_part
        self._names = path.split(".") if path else []
        self._type, self._reads = type(module), list(reads.items())
        self._members = {name: member is None for name, member in module._modules.items()} if has_members else None
        own = (*module._parameters, *module._buffers) if has_members else ()
        self._tensors = {name: getattr(module, name) is None for name in own}

    def holds(self, block: nn.Module) -> bool:
        """Whether the assumptions still hold."""
        module: nn.Module | None = block
        for name in self._names:
            module = module._modules.get(name) if module is not None else None
        if module is None or (self.is_part and (type(module) is not self._type or has_hooks(module))):
            return False
        for name, value in self._reads:
            if not is_same(getattr(module, name, Absent), value):
                return False
        return self._has_members(module)

    def _has_members(self, module: nn.Module) -> bool:
        if self._members is None:
            return True
        members = module._modules
        if any((getattr(module, name, None) is None) is not absent for name, absent in self._tensors.items()):
            return False
        return list(members) == list(self._members) and all(
            (members[name] is None) is absent for name, absent in self._members.items()
        )


class Plan:
    """A rewritten forward for one value of `training`.

    It holds names and functions, not the traced modules, so copies of a module share it.
    """

    def __init__(self, graph: Graph, forward: Callable[..., Any], guards: list[Guard], done: Rewritten):
        code = graph.python_code("self")
        # Skip code before the function: it may contain calls that change how torch.fx traces from then on.
        self._source = code.src[code.src.index("def forward(") :]
        self._globals = dict(code.globals)
        self._signature = _without_annotations(inspect.signature(forward))
        self._inputs = len([node for node in graph.nodes if node.op == "placeholder"])
        self.guards, self.done = guards, done
        self._forward = _compile(self._source, self._globals)

    def has_work(self) -> bool:
        """Whether the plan differs from the user's forward."""
        return bool(self.done.chains or self.done.singles)

    def run(self, block: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> tuple[bool, Any]:
        """Returns whether the plan could be used, and its result (or None)."""
        if keywords or len(arguments) != self._inputs:
            bound = self._bind(arguments, keywords)
            if bound is None:
                return False, None
            arguments = bound
        if not all(type(argument) is Tensor for argument in arguments) or any_global_hooks() or torch.jit.is_tracing():
            return False, None
        if not all(guard.holds(block) for guard in self.guards):
            return False, None
        return True, self._forward(block, *arguments)

    def _bind(self, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> tuple[Any, ...] | None:
        """The tensor arguments in order; None if an argument does not have its default value."""
        try:
            given = self._signature.bind(None, *arguments, **keywords).arguments
        except TypeError:  # the user's forward will raise it
            return None
        tensors = []
        for parameter in list(self._signature.parameters.values())[1:]:
            if parameter.default is parameter.empty and parameter.name in given:
                if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                    return None
                tensors.append(given[parameter.name])
            elif given.get(parameter.name, parameter.default) is not parameter.default:
                return None
        return tuple(tensors)

    def __deepcopy__(self, memo: dict[int, Any]) -> Plan:
        """Copies the guards: objects that the forward read, such as a configuration, are copied with the module."""
        plan = Plan.__new__(Plan)
        plan.__dict__.update(self.__dict__, guards=copy.deepcopy(self.guards, memo))
        return plan

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the source; if it refers to something that cannot be pickled, there is no plan (stock forward)."""
        modules = {name: value.__name__ for name, value in self._globals.items() if isinstance(value, ModuleType)}
        others = {name: value for name, value in self._globals.items() if name not in modules}
        state = {**self.__dict__, "_forward": None, "_globals": others, "_modules": modules}
        try:
            pickle.dumps(state)
        except (pickle.PicklingError, AttributeError, TypeError):
            return _no_plan, ()
        return _plan_from, (state,)


def _without_annotations(signature: inspect.Signature) -> inspect.Signature:
    parameters = [parameter.replace(annotation=parameter.empty) for parameter in signature.parameters.values()]
    return signature.replace(parameters=parameters, return_annotation=signature.empty)


def _no_plan() -> None:
    return None


def _plan_from(state: dict[str, Any]) -> Plan:
    plan = Plan.__new__(Plan)
    names = state["_globals"] | {name: import_module(module) for name, module in state.pop("_modules").items()}
    plan.__dict__.update(state, _globals=names, _forward=_compile(state["_source"], names))
    return plan


def _compile(source: str, names: dict[str, Any]) -> Callable[..., Any]:
    namespace = dict(names)
    exec(compile(source, "<fusedtricks.fuse>", "exec"), namespace)
    return namespace["forward"]


def is_fused(module: nn.Module) -> bool:
    return hasattr(type(module), _STOCK)


def set_plans(module: nn.Module, plans: dict[bool, Plan]) -> None:
    """Makes a module run the plans that differ from its forward, chosen by the value of `training`."""
    module.__dict__[_PLANS] = {training: plan for training, plan in plans.items() if plan.has_work()}
    stock: Any = type(module)
    module.__class__ = _fused_class(stock)


def remove_plans(module: nn.Module) -> None:
    """Restores the user's class of a module."""
    module.__dict__.pop(_PLANS, None)
    if _STOCK in vars(type(module)):  # not a class that something else derived from it
        module.__class__ = getattr(type(module), _STOCK)


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


@cache
def _fused_class(stock: Any) -> Any:
    @functools.wraps(stock.forward)
    def forward(self: nn.Module, *arguments: Any, **keywords: Any) -> Any:
        plan = self.__dict__.get(_PLANS, {}).get(self.training)
        if plan is not None:
            used, result = plan.run(self, arguments, keywords)
            if used:
                return result
        return stock.forward(self, *arguments, **keywords)

    def reduce(self: nn.Module, protocol: Any) -> Any:
        result = stock.__reduce_ex__(self, protocol)
        if not isinstance(result, tuple):
            return result
        if result[0] is copyreg.__newobj__ and result[1][0] is fused:  # type: ignore[attr-defined]
            return (_new, (stock, *result[1][1:]), *result[2:])
        return (stock, *result[1:]) if result[0] is fused else result

    namespace = {
        "__module__": stock.__module__,
        "__qualname__": stock.__qualname__,
        "__doc__": stock.__doc__,
        "__reduce_ex__": reduce,
        _STOCK: stock,
        "forward": forward,
    }
    fused: Any = type(stock)(stock.__name__, (stock,), namespace)
    return fused


def _new(stock: Any, *arguments: Any) -> Any:
    """Creates an empty module of the fused class of `stock`, for unpickling."""
    fused = _fused_class(stock)
    return fused.__new__(fused, *arguments)
