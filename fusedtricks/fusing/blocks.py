"""A module whose forward is a rewritten graph: still of its user's class, with its own forward to fall back on.

The class of such a module is a subclass of the user's, of the same name, as `torch.nn.utils.parametrize` and FSDP do
it. Everything else stays: attributes, members, parameters, hooks. The graph is used where it says what the user's
forward would do; otherwise the user's forward runs.
"""

from __future__ import annotations

import copyreg
import functools
import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph

from .rewrite import Rewritten, Singles
from .run_time import has_hooks
from .tracing import SETTINGS

_PLANS, _STOCK = "_fusedtricks_plans", "_fusedtricks_stock"


class Guard:
    """What a plan takes for granted of one module: its type, its settings, which of its members there are."""

    def __init__(self, path: str, module: nn.Module) -> None:
        self.path, self.type = path, type(module)
        self._names = path.split(".") if path else []
        self.settings = [(k, v) for k, v in vars(module).items() if isinstance(v, SETTINGS) and k != "training"]
        self.members = {name: member is None for name, member in module._modules.items()}

    def holds(self, block: nn.Module, training: bool) -> bool:
        """Whether a module whose forward is part of the plan, so that it is not called, is as it was, without hooks."""
        if not self._names:
            return self._has_settings(block)
        module: nn.Module | None = block
        for name in self._names:
            module = module._modules.get(name) if module is not None else None
        if module is None or type(module) is not self.type or has_hooks(module):
            return False
        return self.type is nn.Identity or (module.training is training and self._has_settings(module))

    def _has_settings(self, module: nn.Module) -> bool:
        attributes, missing = module.__dict__, self
        for name, value in self.settings:
            if attributes.get(name, missing) != value:
                return False
        members = attributes["_modules"]
        if len(members) != len(self.members):
            return False
        return all((members.get(name) is None) is absent for name, absent in self.members.items())


class Plan:
    """A rewritten forward, for one value of `training`.

    Made of names and functions alone, not of the modules it was traced with, so that copies of a module share it.
    """

    def __init__(
        self, graph: Graph, forward: Callable[..., Any], guards: list[Guard], done: Rewritten, singles: Singles
    ):
        self.guards, self.done, self.singles = guards, done, singles
        self._signature = inspect.signature(forward)
        self._names = [node.name for node in graph.nodes if node.op == "placeholder"]
        self._forward = _compile(graph)

    def has_work(self) -> bool:
        """Whether the plan does anything that the user's forward does not."""
        return bool(self.done.chains or self.done.singles)

    def run(self, block: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> tuple[bool, Any]:
        """Whether the plan could be used, and then its result."""
        if keywords or len(arguments) != len(self._names):
            bound = self._bind(arguments, keywords)
            if bound is None:
                return False, None
            arguments = bound
        if not all(isinstance(argument, Tensor) for argument in arguments):
            return False, None
        if not all(guard.holds(block, block.training) for guard in self.guards):
            return False, None
        return True, self._forward(block, *arguments)

    def _bind(self, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> tuple[Any, ...] | None:
        """The tensors in order, or None if an argument with a default has another value."""
        try:
            given = self._signature.bind(None, *arguments, **keywords).arguments
        except TypeError:  # which the user's own forward will raise
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
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _Unpickled, (self.singles,)


class _Unpickled:
    """Stands for a plan that was pickled: a graph is made again, from the class as it is now."""

    def __init__(self, singles: Singles) -> None:
        self.singles = singles


def _compile(graph: Graph) -> Callable[..., Any]:
    code = graph.python_code("self")
    # Before the function there may be calls that change how torch.fx traces anything from then on.
    source = code.src[code.src.index("def forward(") :]
    namespace = dict(code.globals)
    exec(compile(source, "<fusedtricks.fuse>", "exec"), namespace)
    return namespace["forward"]


def is_fused(module: nn.Module) -> bool:
    return hasattr(type(module), _STOCK)


def plans_of(module: nn.Module) -> dict[bool, Any]:
    return module.__dict__.get(_PLANS, {})


def set_plans(module: nn.Module, plans: dict[bool, Plan]) -> None:
    """Makes a module run by those of the plans, by the value of `training`, that have work to do."""
    module.__dict__[_PLANS] = {training: plan for training, plan in plans.items() if plan.has_work()}
    stock: Any = type(module)
    module.__class__ = _fused_class(stock)


def remove_plans(module: nn.Module) -> None:
    """Gives a module back its user's class."""
    module.__dict__.pop(_PLANS, None)
    if is_fused(module):
        module.__class__ = getattr(type(module), _STOCK)


@cache
def _fused_class(stock: Any) -> Any:
    @functools.wraps(stock.forward)
    def forward(self: nn.Module, *arguments: Any, **keywords: Any) -> Any:
        plan = self.__dict__.get(_PLANS, {}).get(self.training)
        if type(plan) is _Unpickled and not torch.compiler.is_compiling():
            plan = _plan_again(self)
        if type(plan) is Plan:
            used, result = plan.run(self, arguments, keywords)
            if used:
                return result
        return stock.forward(self, *arguments, **keywords)

    def reduce(self: nn.Module, protocol: Any) -> Any:
        result = stock.__reduce_ex__(self, protocol)
        if isinstance(result, tuple) and result[0] is copyreg.__newobj__ and result[1][0] is fused:  # type: ignore[attr-defined]
            return (_new, (stock, *result[1][1:]), *result[2:])
        return result

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
    """An empty module of the fused class of `stock`: what unpickling begins with."""
    fused = _fused_class(stock)
    return fused.__new__(fused, *arguments)


def _plan_again(module: nn.Module) -> Plan | None:
    from .planning import make_plans

    unpickled = next(plan for plan in plans_of(module).values() if type(plan) is _Unpickled)
    remove_plans(module)
    plans, _ = make_plans(module, unpickled.singles)
    set_plans(module, plans)
    return plans_of(module).get(module.training)
