"""`fuse`, `unfuse` and `report` for whole models."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..memory.recompute import recompute as _recompute
from .graph.rewrite import Singles
from .install import swaps
from .install.blocks import Plan, Plans, is_fused, prepare, recompute_of, remove_plans, set_plans, set_recompute
from .install.scriptable import restore
from .layers.activations import keeps_result_unlike_stock, of_module
from .layers.classes import stock_class
from .layers.members import is_batch_norm
from .layers.walk import module_at, modules, named_modules
from .planning import Session, is_block, make_plans, new_plans, why_not_read
from .report import Entry, Report
from .verify import verify

_REPORT = "_fusedtricks_report"
Model = TypeVar("Model", bound=nn.Module)


class _Work(NamedTuple):
    """The planned changes to a model."""

    plans: dict[str, Plans]
    swaps: list[str]
    report: Report


def fuse(
    model: Model,
    *,
    inplace: bool = False,
    activations: bool = True,
    dropout: bool = True,
    example_inputs: Any = None,
    recompute: bool | _recompute = False,
) -> Model:
    """Fuses every chain of layers in a model where this certainly gives the same results.

    Chains are, for example, BatchNorm, a residual addition, an activation and dropout; BatchNorm, activation and
    max-pooling; a linear layer's bias, an activation, dropout and an addition; stochastic depth and an addition; an
    activation and fractional max-pooling. `fusing/graph/chains.py` has the full list.

    `fuse` reads the source of each module's forward, and of the functions that it calls, as an interpreter would, but
    runs none of it: decisions by attributes and loops over modules are followed, everything else becomes part of a
    graph. So it follows the data through functions, operators and modules, also across module boundaries. A forward
    whose source is not at hand, or that decides by the values of tensors, sets attributes, has `with` or `try`
    statements, or does anything else that a graph does not do, stays stock; `report` says why. Standalone BatchNorms,
    activations, dropout and fractional pooling are replaced one for one.

    The model keeps its classes, attributes, modules, parameters, hooks and `state_dict`; only the forwards of modules
    that contain chains change. At each call they check what their graph was made for, and run the user's forward if
    it no longer holds: values that decisions depended on, functions and methods that were followed, the members of
    containers, arguments with other than their default values.

    Guaranteed: the same operations on the same tensors in the same order, but for the chains; calls that are not
    followed, such as `torch.manual_seed`, `print` or a function of another library, are made at each call, in their
    place. Not guaranteed: a module that is called between two layers of a chain may switch gradients or autocast for
    its caller too late; after an error between two layers of a chain, the first has not run; and these go unnoticed:
    replaced code of a function (`__code__`), and what called code sets in a way that its own text does not show, such
    as by a hook that is added later, if the forward then decides by it.

    Nothing of the program is run, patched or stopped by this, and other threads may run the model meanwhile, if it is
    not changed in place.

    Args:
        model: any module.
        inplace: change this model instead of a deep copy.
        activations: also replace activations that are in no chain.
        dropout: also replace, and include in chains, layers that draw random numbers: all kinds of dropout, stochastic
            depth and fractional max-pooling. They then draw different random numbers than stock.
        example_inputs: a tensor, a tuple of arguments or a dictionary of keyword arguments. If given, the stock and the
            fused model are both run, forward and backward, in training and in evaluation, and compared.
        recompute: run the model's forward within `fusedtricks.recompute()`, or within the one that is given, such as
            `fusedtricks.recompute(depth=0)`: outputs of fused layers are computed again in the backward instead of
            being kept for it. Tensors that a forward concatenates must then not be changed in place before the
            backward; if its own code does, `torch.cat` stays. Of a model that is fused already, the setting is changed.

    Returns:
        The fused model; `model` itself if `inplace` or if it is already fused and nothing changes.

    Raises:
        TypeError: `model` is not a module; `recompute` is neither a bool nor a `fusedtricks.recompute`.
        ValueError: `model` would have to be copied and has lazy modules that have not run yet.
        RuntimeError: with `example_inputs`, a result or gradient differs by more than rounding. `model` is unchanged.
    """
    _check(model, "fuse")
    setting = _setting(recompute)
    if _REPORT in vars(model):
        return _with_recompute(model, setting, inplace)
    if (not inplace or example_inputs is not None) and _has_lazy_modules(model):
        raise ValueError(
            "fuse(): argument 'model' has lazy modules, which cannot be copied: call the model once before, or pass "
            "inplace=True and no example_inputs"
        )
    restore_all(model)
    fused = model if inplace else copy.deepcopy(model)
    work = _plan(fused, Singles(activations, dropout))
    if example_inputs is not None:
        trial = copy.deepcopy(fused)
        _apply(trial, work)
        verify(copy.deepcopy(fused), trial, example_inputs)
    _apply(fused, work)
    _set_recompute(fused, setting)
    return fused


def _setting(recompute: Any) -> _recompute | None:
    if isinstance(recompute, bool):
        return _recompute() if recompute else None
    if not isinstance(recompute, _recompute):
        raise TypeError(
            f"fuse(): argument 'recompute' must be bool or fusedtricks.recompute, not {type(recompute).__name__}"
        )
    return recompute


def _with_recompute(model: Model, setting: _recompute | None, inplace: bool) -> Model:
    """A fused model with this setting."""
    current = recompute_of(model)
    if (current and current.depth) == (setting and setting.depth) and bool(current) == bool(setting):
        return model
    model = model if inplace else copy.deepcopy(model)
    vars(model)[_REPORT] = copy.copy(vars(model)[_REPORT])
    _set_recompute(model, setting)
    return model


def _set_recompute(model: nn.Module, setting: _recompute | None) -> None:
    """Also says so in the model's report. A single layer stays as it is: nothing is saved of its own output."""
    reason = "" if next(model.children(), None) is None else set_recompute(model, setting)
    current = recompute_of(model)
    report: Report = vars(model)[_REPORT]
    report.recompute = f"recompute: {reason}" if reason else repr(current) if current else ""


def restore_all(model: nn.Module) -> None:
    """Gives the modules that `torch.jit.script` has compiled their own classes back."""
    for module in modules(model):
        restore(module)


def _has_lazy_modules(model: nn.Module) -> bool:
    return any(
        is_lazy(x) for m in modules(model) for x in (*m._parameters.values(), *m._buffers.values()) if x is not None
    )


def unfuse(model: Model, *, inplace: bool = False) -> Model:
    """Undoes `fuse`: restores the model's own forwards and stock layers, keeping current parameters and buffers.

    Modules of `fusedtricks.nn` that the model was written with stay.

    Args:
        model: a fused model; any other model is returned unchanged.
        inplace: change this model instead of a deep copy.

    Raises:
        TypeError: `model` is not a module.
    """
    _check(model, "unfuse")
    restore_all(model)
    if not any(is_fused(module) or swaps.is_swapped(module) or recompute_of(module) for module in modules(model)):
        vars(model).pop(_REPORT, None)
        return model
    stock = model if inplace else copy.deepcopy(model)
    for module in modules(stock):
        remove_plans(module)
        swaps.swap_back(module)
        vars(module).pop(_REPORT, None)
    return stock


def report(model: nn.Module) -> Report:
    """What `fuse` did to this model, to print or to read as lists.

    Raises:
        TypeError: `model` is not a module.
        ValueError: `model` was not returned by `fuse`.
    """
    _check(model, "report")
    if _REPORT not in vars(model):
        raise ValueError("model has not been fused: fusedtricks.fuse(model) returns one that has a report")
    return vars(model)[_REPORT]


def _check(model: Any, function: str) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{function}(): argument 'model' must be torch.nn.Module, not {type(model).__name__}")


def _plan(model: nn.Module, singles: Singles) -> _Work:
    planner = _Planner(singles)
    for name, module in _with_progress(list(named_modules(model))):
        planner.plan_block(name, module)
    for name, module in named_modules(model):
        planner.plan_swap(name, module)
    return planner.work


class _Planner:
    """Collects the changes to a model: first to modules whose forward can be rewritten, then to single layers."""

    def __init__(self, singles: Singles) -> None:
        self.work = _Work({}, [], Report())
        self._singles, self._session = singles, Session(singles)
        self._members: set[nn.Module] = set()  # members of chains
        self._parts: set[nn.Module] = set()  # inlined into other modules' plans
        self._only_read: set[nn.Module] = set()  # activations whose result is never changed
        self._changed: set[nn.Module] = set()  # activations whose result may be changed

    def plan_block(self, name: str, module: nn.Module) -> None:
        try:
            self._plan_block(name, module)
        except Exception as error:  # a class of a kind that nobody has thought of
            reason = f"its class cannot be read: {type(error).__name__}: {error}"
            self._changed.update(_own_members(module))
            self.work.report.left.append(Entry(name, "", reason))

    def _plan_block(self, name: str, module: nn.Module) -> None:
        if module in self._parts or is_fused(module) or not is_block(module):
            return
        obstacle = why_not_read(module) or prepare(stock_class(type(module)))
        plans, parts, reasons = ({}, {}, [obstacle]) if obstacle else make_plans(module, self._session)
        if reasons:  # unknown what the forward does with its members' results
            self._changed.update(_own_members(module))
        for training, plan in plans.items():
            self._only_read.update(module_at(module, path) for path in plan.done.only_read)
            self._changed.update(module_at(module, path) for path in plan.done.changed)
            if plan.has_work():
                self._parts.update(module_at(module, path) for path in parts[training])
                self._members.update(module_at(module, path) for path in plan.done.members)
        if any(plan.has_work() for plan in plans.values()):
            self.work.plans[name] = new_plans(self._singles).set(plans)
        _note(self.work.report, name, plans, reasons if _has_something_to_fuse(module) else [])

    def plan_swap(self, name: str, module: nn.Module) -> None:
        if not self._is_wanted(module):
            return
        reason = self._why_not_kept(module)
        if not reason:
            self.work.swaps.append(name)
        if module not in self._members:
            report, kind = self.work.report, type(module).__name__
            (report.left if reason else report.singles).append(Entry(name, kind, reason))

    def _is_wanted(self, module: nn.Module) -> bool:
        kind = type(module).__name__
        if swaps.twin(module) is None:
            return False
        if kind in swaps.NORMS:
            return True
        return self._singles.dropout if kind in swaps.RANDOM else self._singles.activations

    def _why_not_kept(self, module: nn.Module) -> str:
        """Why an activation must not keep its result for backward, else "". In place, stock keeps it too."""
        activation = of_module(module)
        if activation is None or not keeps_result_unlike_stock(*activation) or getattr(module, "inplace", False):
            return ""
        return "" if module in self._only_read - self._changed else "its result may be changed in place"


def _own_members(module: nn.Module) -> Iterator[nn.Module]:
    """The modules that a forward is likely to call: its children, including those in lists."""
    for child in module.__dict__["_modules"].values() if not isinstance(module, torch.jit.ScriptModule) else ():
        if child is None:
            continue
        if type(child).forward is nn.Module.forward:
            yield from _own_members(child)
        else:
            yield child


def _has_something_to_fuse(module: nn.Module) -> bool:
    """Whether a module's own forward may contain a chain, so that failing to read it is worth reporting."""
    if isinstance(module, torch.jit.ScriptModule):  # whose parts are not Python's
        return True
    children = [child for child in module.__dict__["_modules"].values() if child is not None]
    return bool(module._parameters) or any(is_batch_norm(child) or of_module(child) for child in children)


def _note(report: Report, name: str, plans: dict[bool, Plan], reasons: list[str]) -> None:
    """Adds a module's plans to the report. If both modes have entries and they differ, evaluation's are marked."""
    for list_, items in (
        (report.chains, {mode: [(chain, "") for chain in plan.done.chains] for mode, plan in plans.items()}),
        (report.singles, {mode: [(single, "") for single in plan.done.singles] for mode, plan in plans.items()}),
        (report.left, {mode: plan.done.left for mode, plan in plans.items()}),
    ):
        training, evaluation = items.get(True, []), items.get(False, [])
        list_ += [Entry(name, *item) for item in training or evaluation]
        if training and evaluation and training != evaluation:
            list_ += [Entry(name, what, f"{reason} (evaluation)".strip()) for what, reason in evaluation]
    report.left += [Entry(name, "", reason) for reason in reasons]


def _apply(model: nn.Module, work: _Work) -> None:
    """Makes the changes; all or none of them, also if it is interrupted."""
    swapped: list[nn.Module] = []
    planned: list[nn.Module] = []
    try:
        for name in work.swaps:
            swapped.append(module_at(model, name))
            swaps.swap(swapped[-1])
        for name, plans in work.plans.items():
            planned.append(module_at(model, name))
            set_plans(planned[-1], plans)
        vars(model)[_REPORT] = work.report
    except BaseException:
        vars(model).pop(_REPORT, None)
        for module in planned:
            remove_plans(module)
        for module in swapped:
            swaps.swap_back(module)
        raise


def _with_progress(modules: list[tuple[str, nn.Module]]) -> Iterable[tuple[str, nn.Module]]:
    """Shows a bar on a terminal if it takes longer than a second and tqdm is there."""
    try:
        from tqdm import tqdm
    except ImportError:
        return modules
    return tqdm(modules, "fuse", delay=1, leave=False, disable=None)
