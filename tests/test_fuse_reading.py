"""How fuse reads forwards: every construct of Python that a chain may stand in, and those that leave a module stock."""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from fuse_case import assert_same_training, chains, image
from fuse_models import Base, Checks
from torch import Tensor, nn

import fusedtricks

SCALE, OFFSETS = 2.0, {"a": [1.0, (2.0,)]}


class Pair(NamedTuple):
    first: Tensor
    second: float


class Chain(Base):
    """A chain in a forward that subclasses put something around."""

    scale = 1.5
    sizes = (1, 2)

    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.ModuleList([nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Identity()])
        self.named = nn.ModuleDict({"a": nn.Conv2d(4, 4, 1), "b": nn.Identity()})
        self.body = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Identity())
        self.weights = nn.ParameterList([nn.Parameter(torch.full((1,), 2.0)), nn.Parameter(torch.ones(1))])
        self.by_name = nn.ParameterDict({"w": nn.Parameter(torch.full((1,), 3.0))})
        self.settings = {"slope": 0.1, "list": [1, 2]}

    def chain(self, x: Tensor) -> Tensor:
        return self.relu(self.bn1(self.conv1(x)))


def with_offset(x: Tensor, by: float = 1.0, *more: float, sign: int = 1) -> Tensor:
    for value in (by, *more):
        x = x + sign * value
    return x


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[:, :2], x[:, 2:]


READ: dict[str, Callable[[Any, Tensor], Any]] = {}


def reads(forward: Callable[[Any, Tensor], Any]) -> Callable[[Any, Tensor], Any]:
    READ[forward.__name__] = forward
    return forward


@reads
def enumerated(self: Any, x: Tensor) -> Tensor:
    for i, layer in enumerate(self.extra):
        x = layer(x) * (i + 1)
    return self.chain(x)


@reads
def zipped(self: Any, x: Tensor) -> Tensor:
    for layer, size in zip(self.extra, self.sizes, strict=False):
        x = layer(x) + size
    return self.chain(x)


@reads
def backwards(self: Any, x: Tensor) -> Tensor:
    for layer in reversed(list(self.extra)):
        x = layer(x)
    return self.chain(x)


@reads
def by_index(self: Any, x: Tensor) -> Tensor:
    for i in range(len(self.extra) - 1):
        x = self.extra[i](x) + self.body[-1](x)
    return self.chain(self.extra[-1](x))


@reads
def sliced(self: Any, x: Tensor) -> Tensor:
    for layer in self.extra[1:]:
        x = layer(x)
    return self.chain(x)


@reads
def by_key(self: Any, x: Tensor) -> Tensor:
    for name, layer in self.named.items():
        x = layer(x) + (1.0 if name == "a" else 0.0)
    return self.chain(self.named["b"](x) if "b" in self.named else x)


@reads
def by_children(self: Any, x: Tensor) -> Tensor:
    for name, layer in self.body.named_children():
        x = layer(x) * float(name != "1") + x
    for layer in self.body.children():
        x = layer(x)
    return self.chain(x)


@reads
def by_attribute_name(self: Any, x: Tensor) -> Tensor:
    for i in (1, 2):
        x = getattr(self, f"conv{i}")(x)
    return self.chain(x) if hasattr(self, "relu") and not hasattr(self, "nothing") else x


@reads
def parameters_in_lists(self: Any, x: Tensor) -> Tensor:
    y = self.chain(x)
    for weight in self.weights:
        y = y * weight
    return y * self.by_name["w"]


@reads
def unpacked(self: Any, x: Tensor) -> Tensor:
    first, *rest = self.body
    for layer in (first, *rest):
        x = layer(x)
    a, b = halves(x)
    (n, c), size = x.shape[:2], x.shape[2:]
    return self.chain(torch.cat([a, b], 1)).reshape(n, c, *[s for s in [-1] if s]) * (size[0] / 8)


@reads
def comprehensions(self: Any, x: Tensor) -> Tensor:
    outputs = [layer(x) for layer in self.extra if not isinstance(layer, nn.Identity)]
    scales = {name: len(name) for name in ("a", "bb")}
    return self.chain(sum(outputs) * sum(v for v in scales.values()))


@reads
def collections_of_its_own(self: Any, x: Tensor) -> Tensor:
    features = [x]
    features.append(self.conv2(x))
    features += [features[-1] * 2]
    store: dict[str, Tensor] = {}
    store["y"] = torch.stack(features).sum(0)
    store.update({"z": store.pop("y") + 1})
    return self.chain(store.get("z"))


@reads
def items_of_tensors(self: Any, x: Tensor) -> Tensor:
    y = self.conv2(x)
    y[:, 0] = 0.0
    y[..., 1:] *= 2
    return self.chain(y)


@reads
def functions(self: Any, x: Tensor) -> Tensor:
    y = with_offset(x, 1.0, 2.0, sign=-1)
    y = with_offset(y, **{"by": 0.5})
    return with_offset(self.chain(y), *self.sizes)


@reads
def settings(self: Any, x: Tensor) -> Tensor:
    slope = self.settings.get("slope", 0.0)
    y = self.chain(x) * self.scale * SCALE + OFFSETS["a"][1][0]
    return F.leaky_relu(y, slope) + max(self.settings["list"]) // 2 + len("abc"[1:])


@reads
def words(self: Any, x: Tensor) -> Tensor:
    mode = "reLU".lower()
    if (kind := mode.strip()) in ("relu", "gelu") and kind.startswith("re"):
        return self.chain(x)
    raise ValueError(f"{mode!r:>10} of {x}")


@reads
def text_of_tensors(self: Any, x: Tensor) -> Tensor:
    torch._assert(x.dim() == 4, f"needs images, not {x.dim()} dimensions: {tuple(self.sizes)!r:>9}")
    return self.chain(x)


@reads
def named_results(self: Any, x: Tensor) -> Tensor:
    result = Pair(self.chain(x), second=2.0)
    return result.first * result.second


@reads
def dictionaries(self: Any, x: Tensor) -> Any:
    return collections.OrderedDict(y=self.chain(x))["y"]


@reads
def annotated(self: Any, x: Tensor) -> Tensor:
    y: Tensor = self.chain(x)
    z: Tensor
    z = y if y is not None and not torch.jit.is_scripting() else x
    del y
    return z


@reads
def loops_that_end(self: Any, x: Tensor) -> Tensor:
    for layer in self.extra:
        if isinstance(layer, nn.Identity):
            break
        if layer is self.extra[1]:
            continue
        x = layer(x)
    else:
        x = x + 1
    return self.chain(x)


def model_of(forward: Callable[..., Any]) -> nn.Module:
    return type(forward.__name__, (Chain,), {"forward": forward})().double()


@pytest.mark.parametrize("name", READ)
def test_reads(name):
    stock = model_of(READ[name])
    fused = fusedtricks.fuse(stock)
    assert chains(fused) >= 1, fusedtricks.report(fused)
    assert_same_training(fused, stock)


def test_checks_raise_what_they_did():
    stock = Checks().double()
    fused = fusedtricks.fuse(stock)
    assert chains(fused) == 1
    with pytest.raises(ValueError, match="needs 4 channels, not 5"):
        fused(image(2, 5, 6, 6))
    with pytest.raises(AssertionError, match="needs images"):
        fused(image(2, 4, 6))
    assert stock.bn1.num_batches_tracked == fused.bn1.num_batches_tracked == 0


def test_late_checks_do_not_run_layers_twice():
    class Late(Chain):
        def forward(self, x: Tensor) -> Tensor:
            y = self.chain(x)
            if y.shape[0] == 3:
                raise ValueError("not three")
            return y

    fused = fusedtricks.fuse(Late().double())
    with pytest.raises(ValueError, match="not three"):
        fused(image())
    assert fused.bn1.num_batches_tracked == 1


class Inherits(Chain):
    """Through super(), a property, static and class methods, and a mixin."""

    @property
    def factor(self) -> float:
        return self.scale * 2

    @staticmethod
    def shifted(x: Tensor) -> Tensor:
        return x + 1

    @classmethod
    def scaled(cls, x: Tensor) -> Tensor:
        return x * cls.scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scaled(self.shifted(super().chain(x))) * self.factor


def passed_on(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


class Wrapped(Chain):
    """A decorator that adds nothing is followed."""

    @passed_on
    def forward(self, x: Tensor, scale: float = 2.0) -> Tensor:
        return self.chain(x) * scale


class Closure(Chain):
    def forward(self, x: Tensor) -> Tensor:
        return from_closure(self.chain(x))


def _closure(by: float) -> Callable[[Tensor], Tensor]:
    def scaled(x: Tensor) -> Tensor:
        return x * by

    return scaled


from_closure = _closure(3.0)


@pytest.mark.parametrize("model", [Inherits, Wrapped, Closure])
def test_functions_of_every_kind(model):
    stock = model().double()
    fused = fusedtricks.fuse(stock)
    assert chains(fused) == 1, fusedtricks.report(fused)
    assert_same_training(fused, stock)
    if model is Wrapped:
        x = image()
        torch.testing.assert_close(fused(x, scale=3.0), stock(x, scale=3.0))
        torch.testing.assert_close(fused(x, 3.0), stock(x, 3.0))


def test_without_a_source():
    """A forward made by exec, or edited since it was imported, cannot be read."""
    space: dict[str, Any] = {}
    exec("def forward(self, x):\n    return self.relu(self.bn1(x))\n", space)
    model = type("Made", (Base,), {"forward": space["forward"]})()
    assert "the source of forward is not at hand" in str(fusedtricks.report(fusedtricks.fuse(model)))


def test_an_edited_source(tmp_path):
    """What runs is what was compiled; the file has changed."""
    path = tmp_path / "edited.py"
    text = "def forward(self, x):\n    return self.relu(self.bn1(x))\n"
    path.write_text(text.replace("bn1", "bn2"))
    space: dict[str, Any] = {}
    exec(compile(text, str(path), "exec"), space)
    model = type("Edited", (Base,), {"forward": space["forward"]})()
    assert "has changed since it was imported" in str(fusedtricks.report(fusedtricks.fuse(model)))


class Refuses(Chain):
    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class Loops(Chain):
    def forward(self, x: Tensor) -> Tensor:
        while x.abs().max() > 1:
            x = x / 2
        return self.chain(x)


class LoopsOverTensors(Chain):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.chain(y[None]) for y in x])


class Defines(Chain):
    def forward(self, x: Tensor) -> Tensor:
        def inner(y: Tensor) -> Tensor:
            return y + 1

        return inner(self.chain(x))


class AsksForNone(Chain):
    def forward(self, x: Tensor) -> Tensor:
        y = self.custom(self.chain(x))
        return x if y is None else y


AsksForNone.custom = Inherits()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Refuses, "always raises an error"),
        (Loops, "has a while loop"),
        (LoopsOverTensors, "loops over a tensor"),
        (Defines, "defines a function"),
        (AsksForNone, "that is not one of its modules"),
    ],
)
def test_refuses(model, reason):
    report = fusedtricks.report(fusedtricks.fuse(model()))
    assert not report.chains and reason in str(report), report
