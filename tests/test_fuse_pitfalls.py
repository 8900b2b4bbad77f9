"""Forwards in which Python is not what it seems: the fused model does the same, or the forward stays stock."""

from __future__ import annotations

import copy
import dataclasses
import enum
import functools
import heapq
import math
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fuse_case import image
from fuse_models import Base
from torch import Tensor, nn

import fusedtricks
from fusedtricks.fusing.running.masks import stock_dropout

STEP = 1.0


class Tensors(nn.Module):
    def forward(self, x: Tensor) -> list[Tensor]:
        return [x]


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x * 2, None


class Remembers(nn.Module):
    last = 1.0

    def forward(self, x: Tensor) -> Tensor:
        self.last = 3.0
        return x


class SetsInItsBase(Remembers):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Sets(nn.Module):
    """In ways that no name of an attribute in its own forward shows."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[int] = []
        self.state, self.counter, self.flag = {"scale": 1.0}, Counter(), False
        self.callback = switch

    def forward(self, x: Tensor) -> Tensor:
        self.log.append(1)
        self.state["scale"] = 2.0
        self.counter.step()
        self.callback(self)
        return x


class Counter:
    count = 0

    def step(self) -> None:
        self.count += 1


def switch(module: Any) -> None:
    module.flag = True


class Writes:
    def __init__(self, x: Tensor) -> None:
        self.x = x

    def write(self, y: Tensor) -> None:
        y.mul_(2)


def box(x: Tensor) -> Writes:
    while False:
        pass
    return Writes(x)


class Helper(nn.Module):
    factor = 2.0

    def scale(self, x: Tensor) -> Tensor:
        return x * self.factor

    def forward(self, x: Tensor) -> Tensor:
        return x + 1


class OtherHelper(Helper):
    def scale(self, x: Tensor) -> Tensor:
        return x - 1


class Long(nn.ModuleList):
    def __len__(self) -> int:
        return 1


class Kind(enum.Enum):
    A = 1


@dataclasses.dataclass
class Callable_:
    factor: float = 2.0

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.factor


class Net(Base):
    def __init__(self) -> None:
        super().__init__()
        self.pair, self.remembers, self.helper, self.same = Pair(), Remembers(), Helper(), nn.Identity()
        self.base, self.sets, self.attention = SetsInItsBase(), Sets(), nn.MultiheadAttention(7, 1, batch_first=True)
        self.gelu, self.tensors = nn.GELU(), Tensors()
        self.layers = nn.ModuleList([nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)])
        self.seq = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.long, self.silu, self.drop, self.call = Long([nn.Identity()] * 2), nn.SiLU(), nn.Dropout(0.5), Callable_()
        self.register_buffer("buffer", torch.ones(4, 1, 1))
        self.act = nn.ReLU()

    @property
    def missing(self) -> float:
        raise AttributeError("missing")

    def c(self, x: Tensor) -> Tensor:
        return self.relu(self.bn1(x))


def bump() -> None:
    global STEP
    STEP += 1


@functools.wraps(F.relu)
def written(x: Tensor) -> Tensor:
    return x.add_(1)


def appends(pair: Any) -> None:
    pair[0].append(pair[1] * 2)
    while len(pair) > 5:
        break


FORWARDS: dict[str, Callable[[Any, Tensor], Any]] = {}


def case(forward: Callable[[Any, Tensor], Any]) -> Callable[[Any, Tensor], Any]:
    FORWARDS[forward.__name__] = forward
    return forward


@case
def a_result_that_is_none(self: Any, x: Tensor) -> Tensor:
    x, state = self.pair(x)
    if state is not None:
        x = x + state
    return self.c(x if self.pair(x)[1] is None else -x)


@case
def a_setting_that_a_child_sets(self: Any, x: Tensor) -> Tensor:
    x = self.remembers(x)
    return self.c(x) * self.remembers.last


@case
def a_global_that_a_function_sets(self: Any, x: Tensor) -> Tensor:
    bump()
    return self.c(x) * (STEP - STEP + 1) * (1 if STEP else 2)


@case
def a_buffer_by_two_names(self: Any, x: Tensor) -> Tensor:
    r = self.buffer
    y = self.bn1(x) + r
    self.buffer.add_(1)
    return self.relu(y)


@case
def an_average_in_a_buffer(self: Any, x: Tensor) -> Tensor:
    y = self.silu(self.bn1(x) + self.buffer)
    self.buffer.mul_(0.9)
    return y.detach() + x


@case
def iterators(self: Any, x: Tensor) -> Tensor:
    pairs = zip(self.layers, self.layers, strict=True)
    for a, b in pairs:
        x = b(a(x))
    for a, b in pairs:
        x = b(a(x))
    return self.c(x)


@case
def a_generator_that_is_late(self: Any, x: Tensor) -> Tensor:
    s = 1
    values = (s * i for i in (1, 2))
    s = 10
    return self.c(x) * sum(values)


@case
def a_generator_that_is_not_used_up(self: Any, x: Tensor) -> Tensor:
    for _, y in zip(range(1), (self.bn2(layer(x)) for layer in self.layers), strict=False):
        x = y
    return self.c(x)


@case
def views_of_dictionaries(self: Any, x: Tensor) -> Tensor:
    values = {"a": x}
    keys = values.keys()
    values["b"] = x
    return self.c(x) * len(keys)


@case
def returned_views(self: Any, x: Tensor) -> Any:
    return type({"y": self.c(x)}.values()).__name__


@case
def a_walrus_in_a_comprehension(self: Any, x: Tensor) -> Tensor:
    y = x
    _ = [y := layer(y) for layer in self.layers]
    return self.c(y)


@case
def a_list_that_grows_in_its_loop(self: Any, x: Tensor) -> Tensor:
    steps = [1]
    for i in steps:
        if len(steps) < 4:
            steps.append(i + 1)
        x = x * i
    return self.c(x)


@case
def a_dictionary_that_grows_in_its_loop(self: Any, x: Tensor) -> Tensor:
    values = {"a": x}
    for key in values:
        values[key + "2"] = x
    return self.c(x)


@case
def keywords_of_built_in_functions(self: Any, x: Tensor) -> Tensor:
    n = int("10", base=2) + math.prod([2, 3], start=5) + (1 if math.isclose(1.0, 1.4, rel_tol=0.9) else 0)
    return self.c(x) * n + [1, 2, 1].index(1, 1)


@case
def lists_in_lists(self: Any, x: Tensor) -> Tensor:
    twice = [[1]] * 2
    twice[0].append(5)
    row = [1]
    rows = [row] + []  # noqa: RUF005
    row.append(2)
    return self.c(x) * len(twice[1]) + len(rows[0])


@case
def lists_that_others_change(self: Any, x: Tensor) -> Tensor:
    values = [3, 1, 2]
    heapq.heapify(values)
    operator.setitem(values, 1, 7)
    list.append(values, 5)
    return self.c(x) * values[0] + len(values) + values[1]


@case
def a_list_that_a_function_has_begun_to_change(self: Any, x: Tensor) -> Tensor:
    features = [x]
    appends((features, x))
    return self.c(features[-1])


@case
def a_container_with_its_own_length(self: Any, x: Tensor) -> Tensor:
    return self.c(x) * len(self.long)


@case
def slices_of_sequentials(self: Any, x: Tensor) -> Tensor:
    return self.c(self.seq[:2](x))


@case
def in_place_by_its_long_name(self: Any, x: Tensor) -> Tensor:
    r = x * 1
    y = self.bn1(x) + r
    r.__iadd__(1)
    return self.relu(y) + r


@case
def random_numbers_in_between(self: Any, x: Tensor) -> Tensor:
    d = self.drop(x * 1)
    n = torch.empty_like(x).uniform_()
    return d + n + self.c(x)


@case
def a_function_in_disguise(self: Any, x: Tensor) -> Tensor:
    r = x * 1
    y = self.bn1(x) + r
    z = written(r)
    return self.relu(y) + z


@case
def odd_keys(self: Any, x: Tensor) -> Any:
    return next(iter({Kind.A: self.c(x)}.values())) + {float("inf"): x}[math.inf]


@case
def an_object_that_is_called(self: Any, x: Tensor) -> Tensor:
    return self.c(self.call(x))


@case
def errors_of_built_in_functions(self: Any, x: Tensor) -> Tensor:
    return self.c(x) * math.sqrt(-1)


@case
def a_missing_member(self: Any, x: Tensor) -> Tensor:
    return self.c(self.nothing(x))


@case
def a_setting_that_a_base_class_sets(self: Any, x: Tensor) -> Tensor:
    x = self.base(x)
    return self.c(x) * self.base.last


@case
def a_list_that_a_child_appends_to(self: Any, x: Tensor) -> Tensor:
    x = self.sets(x)
    return self.c(x) * len(self.sets.log)


@case
def a_dictionary_that_a_child_writes_to(self: Any, x: Tensor) -> Tensor:
    x = self.sets(x)
    return self.c(x) * self.sets.state["scale"]


@case
def an_object_that_a_child_changes(self: Any, x: Tensor) -> Tensor:
    x = self.sets(x)
    return self.c(x) * self.sets.counter.count


@case
def a_flag_that_a_callback_sets(self: Any, x: Tensor) -> Tensor:
    x = self.sets(x)
    return self.c(x) * (2 if self.sets.flag else 3)


@case
def a_pyramid(self: Any, x: Tensor) -> Tensor:
    levels = [x, x * 2, x * 3]
    for i, level in enumerate(levels):
        if i < 2:
            levels[i + 1] = levels[i + 1] + level
    return self.c(sum(levels))


@case
def items_that_change_in_their_loop(self: Any, x: Tensor) -> Tensor:
    values = {"a": x, "b": x * 2}
    y = x * 0
    for _, value in values.items():
        values["b"] = x * 7
        y = y + value
    return self.c(y)


@case
def one_of_several_results(self: Any, x: Tensor) -> Tensor:
    result = self.attention(x[:, 0], x[:, 0], x[:, 0], need_weights=False)
    return self.c(x) * (1 if result[1] is None else 2)


@case
def shifts_in_place(self: Any, x: Tensor) -> Tensor:
    r = (x * 1).detach()
    y = self.bn1(x) + r
    r <<= 1
    return self.relu(y) + r


@case
def lists_that_are_added(self: Any, x: Tensor) -> Tensor:
    y = self.silu(self.bn1(x) + x)
    z = self.tensors(x) + [y]  # noqa: RUF005
    z[-1].mul_(2)
    return z[-1]


@case
def an_object_that_writes(self: Any, x: Tensor) -> Tensor:
    y = self.silu(self.bn1(x) + x)
    box(x).write(y)
    return y


@case
def a_property_that_is_not_there(self: Any, x: Tensor) -> Tensor:
    return self.c(x) * (2 if hasattr(self, "missing") else 3)


def outcome(model: nn.Module, training: bool, *inputs: Tensor) -> Any:
    """Results, gradients and buffers, or the class of the error."""
    inputs = tuple(x.clone().requires_grad_() for x in inputs)
    torch.manual_seed(0)
    try:
        with stock_dropout():
            y = model.train(training)(*inputs)
        if not isinstance(y, Tensor):
            return y
        gradients = torch.autograd.grad(y.square().sum(), inputs, allow_unused=True)
    except Exception as error:
        return type(error)
    return [y.detach(), *gradients, *(buffer.clone() for buffer in model.buffers())]


def assert_same(fused: nn.Module, stock: nn.Module, *inputs: Tensor) -> None:
    for training in (True, False, True):
        actual, expected = outcome(fused, training, *inputs), outcome(stock, training, *inputs)
        if isinstance(expected, list):
            torch.testing.assert_close(actual, expected)
        else:
            assert actual == expected


@pytest.mark.parametrize("name", FORWARDS)
def test_forwards(name):
    stock = type(name, (Net,), {"forward": FORWARDS[name]})().double()
    stock.nothing = None
    assert_same(fusedtricks.fuse(stock), stock, image())


class Asks(Net):
    def forward(self, x: Tensor) -> Tensor:
        if self.helper is not None:
            x = self.helper(x)
        if isinstance(self.helper, OtherHelper) or self.bn1 is self.bn2:
            x = x * 3
        if self.helper:
            x = self.helper.scale(x) * self.helper.factor
        return self.relu(self.same(self.bn1(x)))


class Beside(Net):
    """Another layer works on a chain's input before the chain ends."""

    def forward(self, x: Tensor) -> Tensor:
        w = x * 1
        y = self.bn1(w)
        z = self.act(w)
        return self.relu(y) + z


class Adds(Net):
    def forward(self, x: Tensor) -> Tensor:
        r = x * 1
        y = self.act(self.bn1(x) + r)
        r.add_(1)
        return y + r


class DrawsBetween(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(x)
        r = torch.rand_like(x)
        return self.act(y) + r


class Smooth(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.gelu(self.bn1(x)))


LATER: dict[str, tuple[type[Net], Callable[[Any], Any]]] = {
    "submodule of another class": (Asks, lambda m: setattr(m, "helper", OtherHelper())),
    "one module for two": (Asks, lambda m: setattr(m, "bn2", m.bn1)),
    "identity replaced": (Asks, lambda m: setattr(m, "same", nn.Sigmoid())),
    "in place": (Beside, lambda m: setattr(m.act, "inplace", True)),
    "an activation that keeps more": (Adds, lambda m: setattr(m, "act", nn.SiLU())),
    "a member that draws": (DrawsBetween, lambda m: setattr(m, "bn1", nn.Dropout(0.5))),
    "another form of the activation": (Smooth, lambda m: setattr(m.gelu, "approximate", "tanh")),
    "a hook that draws": (DrawsBetween, lambda m: m.bn1.register_forward_hook(lambda m, x, y: y * torch.rand(1))),
}


@pytest.mark.parametrize("name", LATER)
def test_changes(name):
    model, change = LATER[name]
    stock = model().double()
    fused = fusedtricks.fuse(stock)
    assert fusedtricks.report(fused).chains
    assert_same(fused, stock, image())
    for m in (stock, fused):
        change(m)
    assert_same(fused, stock, image())


def test_a_submodule_that_is_removed():
    class Optional_(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.c(x if self.helper is None else self.helper(x))

    stock = Optional_().double()
    fused = fusedtricks.fuse(stock)
    for m in (stock, fused):
        m.helper = None
    assert_same(fused, stock, image())


def test_inputs_that_share_memory():
    class Two(Net):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            z = self.bn1(x)
            y.add_(1)
            return self.relu(z)

    stock = Two().double()
    fused = fusedtricks.fuse(stock)
    with torch.no_grad():
        a = image()
        c = a.clone()
        torch.testing.assert_close(fused(a, a[:]), stock(c, c[:]))


def test_a_caller_that_changes_what_was_added():
    class Inner(Net):
        def forward(self, x: Tensor, r: Tensor) -> Tensor:
            return self.silu(self.bn1(x) + r)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, x: Tensor) -> Tensor:
            r = x * 1.0
            y = self.inner(x, r)
            r.mul_(2)
            return y + 1

    stock = Outer().double()
    assert_same(fusedtricks.fuse(stock), stock, image())


def test_a_built_in_function_that_is_shadowed_later(monkeypatch):
    class Largest(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.c(x) * max(1, 2)

    stock = Largest().double()
    fused = fusedtricks.fuse(stock)
    monkeypatch.setitem(globals(), "max", lambda a, b: a + b)
    assert_same(fused, stock, image())


def test_a_static_forward():
    class Static(nn.Module):
        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return F.relu(x)

    x = image()
    torch.testing.assert_close(fusedtricks.fuse(nn.Sequential(Static()))(x), F.relu(x))


class Refuses(type):
    def __instancecheck__(cls, instance: Any) -> bool:
        raise AssertionError("asked")


class NeverAsked(metaclass=Refuses):
    @property
    def __class__(self) -> Any:
        raise AssertionError("asked")

    def __eq__(self, other: object) -> bool:
        raise AssertionError("asked")

    __hash__ = None  # type: ignore[assignment]


class Frozen(Net):
    """Code of the user's around its attributes, which fuse must not run."""

    asked = 0

    def __getattr__(self, name: str) -> Any:
        type(self).asked += 1
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "__class__":
            raise AttributeError("frozen")
        super().__setattr__(name, value)

    def named_modules(self, memo: Any = None, prefix: str = "") -> Any:  # type: ignore[override]
        raise AssertionError("asked")

    def forward(self, x: Tensor) -> Tensor:
        return self.c(x)


def test_nobody_is_asked():
    stock = nn.Sequential(Frozen(), nn.BatchNorm2d(4), nn.ReLU())
    vars(stock[0])["object"] = NeverAsked()
    Frozen.asked = 0
    fused = fusedtricks.fuse(stock, inplace=True)
    assert len(fusedtricks.report(fused).chains) == 2 and not Frozen.asked


def test_time_is_linear_in_nested_wrappers():
    """What a wrapper begins with is found once, not once for each of its arguments."""

    class Wrapper(nn.Module):
        def __init__(self, sub: nn.Module) -> None:
            super().__init__()
            self.sub = sub

        def forward(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
            return self.sub(x, a, b)

    class Last(nn.Module):
        def forward(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
            return x + a * b

    class First(Net):
        def __init__(self) -> None:
            super().__init__()
            self.sub = functools.reduce(lambda m, _: Wrapper(m), range(40), Last())

        def forward(self, x: Tensor) -> Tensor:
            return self.sub(self.bn1(x), x, x)

    stock = First().double()
    assert_same(fusedtricks.fuse(stock), stock, image())


def test_copies_of_a_fused_model_are_fused():
    stock = Asks().double()
    fused = copy.deepcopy(fusedtricks.fuse(stock))
    assert_same(fused, stock, image())
