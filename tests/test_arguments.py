"""Every kind of argument, input and state: the same result as stock's, or the same class of error at the same time."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from twins import LENGTH, TWINS, Twin, differences, outcome, values

try:
    import numpy as np
except ImportError:
    np = None

NAN, INF = float("nan"), float("inf")

KINDS: dict[str, Any] = {
    "0": 0,
    "1": 1,
    "2": 2,
    "-1": -1,
    "10**400": 10**400,
    "True": True,
    "False": False,
    "0.0": 0.0,
    "0.5": 0.5,
    "1.0": 1.0,
    "2.0": 2.0,
    "-0.5": -0.5,
    "1e-40": 1e-40,
    "nan": NAN,
    "inf": INF,
    "-inf": -INF,
    "Fraction": Fraction(1, 2),
    "Decimal": Decimal("0.5"),
    "complex": 0.5j,
    **({"numpy.float64": np.float64(0.5), "numpy.float32": np.float32(0.5), "numpy.int64": np.int64(1)} if np else {}),
    "0-d tensor": torch.tensor(0.5),
    "0-d integer tensor": torch.tensor(1),
    "1-d tensor": torch.tensor([0.5]),
    "tensor of two": torch.tensor([0.5, 0.5]),
    "0-d tensor that requires grad": torch.tensor(0.5, requires_grad=True),
    "str": "0.5",
    "empty str": "",
    "bytes": b"\x01",
    "None": None,
    "[]": [],
    "[1]": [1],
    "(1,)": (1,),
    "(2, 2)": (2, 2),
    "[2, 1]": [2, 1],
    "(2, 2, 2)": (2, 2, 2),
    "(0.5, 0.5)": (0.5, 0.5),
    "(0.5, 0.5, 0.5)": (0.5, 0.5, 0.5),
    "(2, 2.0)": (2, 2.0),
    "torch.Size": torch.Size([2, 2]),
    "dict": {},
    "object": object(),
}
OWN_KINDS: dict[str, dict[str, Any]] = {
    "approximate": {"none": "none", "tanh": "tanh", "sinh": "sinh"},
    "padding": {"same": "same", "valid": "valid", "full": "full", "-1, 0": (-1, 0)},
    "padding_mode": {mode: mode for mode in ("zeros", "reflect", "replicate", "circular", "constant")},
    "device": {"cpu": "cpu", "meta": "meta", "device": torch.device("meta"), "unknown": "gpu"},
    "dtype": {str(dtype): dtype for dtype in (torch.float64, torch.bfloat16, torch.int64, torch.complex64)},
}
TENSORS: dict[str, Any] = {
    "None": None,
    "double": lambda t: t.double(),
    "bfloat16": lambda t: t.bfloat16(),
    "float16": lambda t: t.half(),
    "int64": lambda t: t.long(),
    "longer": lambda t: torch.cat([t, t]),
    "shorter": lambda t: t[:1],
    "empty": lambda t: t[:0],
    "0-d": lambda t: t.flatten()[0],
    "one more dimension": lambda t: t.unsqueeze(-1),
    "strided": lambda t: torch.stack([t, t], -1)[..., 0],
    "expanded": lambda t: t[:1].expand(t.shape),
    "requires grad": lambda t: t.clone().requires_grad_(),
    "requires grad, no leaf": lambda t: t.clone().requires_grad_() * 1,
    "inference": lambda t: _inference(t),
    "meta": lambda t: t.to("meta"),
    "list": lambda t: t.tolist(),
    "number": lambda t: 1.0,
}
# Elements that share memory have no defined value after the call.
WRITTEN = ("running_mean", "running_var")


class Kept(NamedTuple):
    """A deviation from stock that stays: regular expressions of what it is about, and why it stays."""

    twins: str
    case: str
    deviation: str
    reason: str

    def covers(self, name: str, case: str, deviation: str) -> bool:
        texts = ((self.twins, name), (self.case, case), (self.deviation, deviation))
        return all(re.fullmatch(pattern, text, re.DOTALL) for pattern, text in texts)


KEPT = [
    Kept(".*", ".*input.*", "stock AttributeError .*; ours TypeError .* must be Tensor.*", "names the argument"),
    Kept(".*", ".*", r"stock (\w+) in (training|backward).*; ours \1 in (construction|training).*", "raised sooner"),
    Kept(".*", "(attribute )?p", "stock RuntimeError .*got nan.*; ours ValueError .*got nan.*", "as for other values"),
    Kept("(?i)(act|(feature_?)?alpha_?)?dropout.*", ".*input", "[^;]*values: .*nan.*", "a dropped value is 0"),
    Kept("(?i)gelu", "input", ".*values: stock .*nan.*", "the limits at infinity, see test_stock_faults"),
    Kept(
        "(?i)fractional.*|BatchNorm...?.?1d", ".*", "[^;]*strides: [^;]*(; [^;]*strides: [^;]*)?", "keeps channels last"
    ),
    Kept("(?i)fractional.*", "kernel_size", "stock works; ours ValueError .*greater than 0.*", "stock reads nothing"),
    Kept("batch_norm_act_max_pool2d", ".*", "stock .*; ours ValueError .*it takes 4.*", "for images only"),
    Kept("BatchNormActMaxPool2d", "state, bfloat16 input", "[^;]*gradient 0, values.*", "compares before it rounds"),
    Kept("batch_norm_act.*", "momentum", "stock TypeError .*NoneType.*; ours works", "None is a cumulative average"),
    Kept("fractional_max_pool2d by ratio", "output_ratio", "stock TypeError .*has no len.*", "stock takes no number"),
    Kept(".*", "state, no samples input", "stock .*; ours (Runtime|Value)Error.*", "checked in an empty batch too"),
    Kept(
        "batch_?norm_?act.*|BatchNorm.*", "input", "stock works; ours RuntimeError .*should contain 0.*", "checked too"
    ),
    Kept("batch_norm_act", "input", "stock RuntimeError .*; ours IndexError.*", "names the dimensions"),
    Kept("batch_norm_act.*", "weight|bias", "stock works; ours RuntimeError .*one per channel.*", "names the shape"),
    Kept("batch_norm_act.*", "running_.*", "stock works; ours RuntimeError .*inference tensor.*", "stock writes to it"),
    Kept("BatchNorm.*", "state, bfloat16 input", "stock RuntimeError .*; ours works", "each parameter on its own"),
    Kept("BatchNorm.*", "state, float64 input", "stock ValueError .*; ours RuntimeError.*", "the dtype comes first"),
    Kept("(?i)batch_?norm_?act_?max.*", "input", "stock ValueError .*; ours RuntimeError.*", "the windows come first"),
    Kept("(?i)batch_?norm_?act_?max.*", ".*", "stock ValueError .*; ours (Type|Runtime)Error.*", "10**400 as a size"),
    Kept(
        "(?i)leaky_?relu|elu|softplus", ".*", "stock RuntimeError .*; ours TypeError .*complex.*", "names the argument"
    ),
    Kept("(?i)gelu", ".*approximate", "stock RuntimeError .*; ours TypeError .*bytes.*", "names the argument"),
    Kept(".*", ".*", "stock RuntimeError .*ambiguous.*; ours TypeError.*", "names the argument"),
    Kept(
        "(?i)fractional.*", ".*", "stock [A-Z].*; ours (Type|Value|Runtime)Error.*", "sizes are checked first, by name"
    ),
    Kept("(?i)fractional.* by ratio", "output_ratio", "stock works; ours .*Error.*", "stock computes with anything"),
    Kept("(?i)fractional.*", "output_(ratio|size)", "stock TypeError .*0-d tensor.*; ours works", "one for all"),
    Kept("(?i)fractional.*", ".*", "stock works; ours RuntimeError .*takes 1 to.*", "an empty result"),
    Kept("(?i)fractional.*", ".*", "stock works; ours RuntimeError .*one device.*", "samples beside a meta tensor"),
    Kept(
        "(?i)(act|(feature_?)?alpha_?)?dropout.*",
        ".*input.*|no_grad|inference_mode",
        "[^;]*is input: [^;]*",
        "or a new tensor with its values",
    ),
    Kept(
        "(?i)(act|(feature_?)?alpha_?)?dropout.*", ".*input", "([^;]*strides: [^;]*(; )?)+", "dense, or channels last"
    ),
    Kept("LinearActDropout", "input without kernels", "stock .*Error .*; ours .*Error.*", "of the matrix product"),
]

CASES = [(name, setting) for name, twin in TWINS.items() for setting in twin.varied]


@pytest.fixture(autouse=True)
def one_thread(restore_threads: None) -> None:
    """These tensors are so small that waking other threads would take most of the time."""
    torch.set_num_threads(1)


def _inference(t: Tensor) -> Tensor:
    with torch.inference_mode():
        return t.clone()


def kinds_of(twin: Twin, setting: str) -> dict[str, Callable[[], Any]]:
    """What a setting is varied over, each made anew for every call, because layers write to tensors."""
    given = twin.given.get(setting)
    if isinstance(given, Tensor):
        kinds = {kind: partial(change, given.clone()) if change else _none for kind, change in TENSORS.items()}
        if setting in WRITTEN:
            del kinds["expanded"]
        return kinds
    return {kind: partial(_same, value) for kind, value in (KINDS | OWN_KINDS.get(setting, {})).items()}


def _none() -> None:
    return None


def _same(value: Any) -> Any:
    return value


def _nothing(layer: Any) -> None:
    pass


def deviation(
    twin: Twin,
    settings: dict[str, Callable[[], Any]] | None = None,
    make_input: Callable[[Tensor], Any] = _same,
    change: Callable[[Any], Any] = _nothing,
) -> str:
    """How ours differs from stock, or ""."""
    made = {name: partial(_fresh, value) for name, value in twin.given.items()} | (settings or {})
    results = []
    for build in (twin.fused, twin.stock):
        results.append(
            outcome(
                lambda build=build: build(**{name: make() for name, make in made.items()}),
                lambda: make_input(torch.ones((LENGTH,) * twin.rank) if twin.draws else twin.input()),
                twin.draws,
                change,
            )
        )
    return "; ".join(differences(*results))


def _fresh(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


@pytest.mark.parametrize(("name", "setting"), CASES, ids=["-".join(case) for case in CASES])
def test_settings(name, setting):
    twin = TWINS[name]
    found = {kind: deviation(twin, {setting: make}) for kind, make in kinds_of(twin, setting).items()}
    assert unexpected(name, setting, found) == {}


ATTRIBUTES = [
    (name, setting)
    for name, setting in CASES
    if setting in ("p", "inplace", "negative_slope", "alpha", "eps", "momentum", "beta", "threshold", "approximate")
    and issubclass(type(TWINS[name].fused(**TWINS[name].given)), nn.Module)
]


@pytest.mark.parametrize(("name", "setting"), ATTRIBUTES, ids=["-".join(case) for case in ATTRIBUTES])
def test_attributes(name, setting):
    """A setting that is changed on a layer which exists."""

    def assign(value: Any, layer: nn.Module) -> None:
        for module in layer.modules():
            if hasattr(module, setting):
                setattr(module, setting, value)

    twin = TWINS[name]
    found = {kind: deviation(twin, change=partial(assign, make())) for kind, make in kinds_of(twin, setting).items()}
    assert unexpected(name, f"attribute {setting}", found) == {}


def _leaf(x: Tensor) -> Tensor:
    return x.requires_grad_()


def _channels_last(x: Tensor) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if x.dim() > 2 else x


class Subclass(Tensor):
    """A subclass without anything of its own."""


def _of_rank(rank: int, x: Tensor) -> Tensor:
    shape = (LENGTH,) * rank
    return torch.ones(shape) if x.unique().numel() == 1 else values(shape)


INPUTS: dict[str, Callable[[Tensor], Any]] = {
    **{f"{rank}-d": partial(_of_rank, rank) for rank in range(7)},
    "no samples": lambda x: x[:0],
    "no channels": lambda x: x[:, :0],
    "no positions": lambda x: x[..., :0],
    "one sample": lambda x: x[:1],
    "one channel": lambda x: x[:, :1],
    "one position": lambda x: x[(slice(None), slice(None), *[slice(1)] * (x.dim() - 2))],
    "one value a channel": lambda x: x[(slice(1), slice(None), *[slice(1)] * (x.dim() - 2))],
    "transposed": lambda x: x.transpose(0, 1),
    "reversed": lambda x: x.permute(*reversed(range(x.dim()))),
    "channels last": _channels_last,
    "every other": lambda x: torch.stack([x, x], -1)[..., 0],
    "expanded": lambda x: x[:1].expand(x.shape),
    "negative view": lambda x: torch._neg_view(-x),
    "leaf": _leaf,
    "expanded leaf": lambda x: x[:1].requires_grad_().expand(x.shape),
    "non-leaf": lambda x: _leaf(x) * 1,
    "view of a leaf": lambda x: _leaf(x).view(x.shape),
    "channels-last non-leaf": lambda x: _leaf(_channels_last(x)) * 1,
    "parameter": lambda x: nn.Parameter(x),
    "subclass": lambda x: x.as_subclass(Subclass),
    "inference": _inference,
    "meta": lambda x: x.to("meta"),
    "meta leaf": lambda x: x.to("meta").requires_grad_(),
    "nan": lambda x: x * NAN,
    "inf": lambda x: x * INF,
    **{
        str(dtype).removeprefix("torch."): partial(Tensor.to, dtype=dtype)
        for dtype in (torch.float64, torch.bfloat16, torch.float16)
    },
    "float64 leaf": lambda x: _leaf(x.double()),
    "bfloat16 leaf": lambda x: _leaf(x.bfloat16()),
    "none": lambda x: None,
    "number": lambda x: 1.0,
    "list": lambda x: x.tolist(),
    "tuple of tensors": lambda x: (x, x),
    "numpy": lambda x: x.numpy(),
    "str": lambda x: "x",
}
WITHOUT_KERNELS: dict[str, Callable[[Tensor], Any]] = {
    **{
        str(dtype).removeprefix("torch."): partial(Tensor.to, dtype=dtype)
        for dtype in (torch.int64, torch.int8, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn)
    },
    "sparse": lambda x: x.to_sparse(),
    "csr": lambda x: x.flatten(1).to_sparse_csr(),
    "nested": lambda x: torch.nested.nested_tensor([x[0], x[1]]),
    "jagged": lambda x: torch.nested.nested_tensor([x[0], x[1][:1]], layout=torch.jagged),
    "mkldnn": lambda x: x.to_mkldnn(),
    "quantized": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
}


WAYS = [(name, way) for name, twin in TWINS.items() for way in (False, True) if not way or "inplace" in twin.varied]


@pytest.mark.parametrize(("name", "inplace"), WAYS, ids=[f"{name}-{'inplace' if way else 'new'}" for name, way in WAYS])
def test_inputs(name, inplace):
    twin = TWINS[name]
    settings = {"inplace": lambda: True} if inplace else {}
    found = {kind: deviation(twin, settings, make) for kind, make in INPUTS.items()}
    assert unexpected(name, "inplace input" if inplace else "input", found) == {}


@pytest.mark.parametrize(("name", "inplace"), WAYS, ids=[f"{name}-{'inplace' if way else 'new'}" for name, way in WAYS])
def test_inputs_without_kernels(name, inplace):
    twin = TWINS[name]
    settings = {"inplace": lambda: True} if inplace else {}
    found = {kind: deviation(twin, settings, make) for kind, make in WITHOUT_KERNELS.items()}
    assert unexpected(name, "inplace input without kernels" if inplace else "input without kernels", found) == {}


def _norms(layer: nn.Module) -> list[Any]:
    return [m for m in layer.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def _set(attribute: str, value: Callable[[Any], Any], layer: nn.Module) -> None:
    for norm in _norms(layer):
        setattr(norm, attribute, value(getattr(norm, attribute)))


STATES: dict[str, Callable[[nn.Module], Any]] = {
    **{
        f"{attribute} {kind}": partial(_set, attribute, lambda t, change=change: change(t.detach()) if change else None)
        for attribute in WRITTEN
        for kind, change in TENSORS.items()
        if kind not in ("list", "number", "expanded")
    },
    **{
        f"{attribute} {kind}": partial(
            _set, attribute, lambda t, change=change: nn.Parameter(change(t.detach())) if change else None
        )
        for attribute in ("weight", "bias")
        for kind, change in TENSORS.items()
        if kind not in ("list", "number", "int64", "requires grad, no leaf")
    },
    "no statistics": lambda m: (_set("running_mean", _nothing, m), _set("running_var", _nothing, m)),
    "no statistics, no momentum": lambda m: (
        _set("running_mean", _nothing, m),
        _set("running_var", _nothing, m),
        _set("momentum", _nothing, m),
    ),
    "statistics of double": lambda m: [norm.running_mean.double() for norm in _norms(m)] and m.double(),
    "half": lambda m: m.half(),
    "bfloat16": lambda m: m.bfloat16(),
    "no count": partial(_set, "num_batches_tracked", _nothing),
    "no count, no momentum": lambda m: (_set("num_batches_tracked", _nothing, m), _set("momentum", _nothing, m)),
    "no momentum": partial(_set, "momentum", _nothing),
    "count of float": partial(_set, "num_batches_tracked", lambda t: t.float()),
    "count of int32": partial(_set, "num_batches_tracked", lambda t: t.int()),
    "count of one element": partial(_set, "num_batches_tracked", lambda t: t.view(1)),
    "count of two elements": partial(_set, "num_batches_tracked", lambda t: t.expand(2).clone()),
    "count in inference mode": partial(_set, "num_batches_tracked", _inference),
    "count of int32, no momentum": lambda m: (
        _set("num_batches_tracked", lambda t: t.int(), m),
        _set("momentum", _nothing, m),
    ),
    "does not track": lambda m: [setattr(norm, "track_running_stats", False) for norm in _norms(m)],
    "both inference": lambda m: (_set("running_mean", _inference, m), _set("running_var", _inference, m)),
    "frozen": lambda m: m.requires_grad_(False),
}
NORMS = [name for name, twin in TWINS.items() if "num_features" in twin.varied]


@pytest.mark.parametrize("input", ["float32", "leaf", "bfloat16", "float64", "no samples"])
@pytest.mark.parametrize("name", NORMS)
def test_states(name, input):
    """State that users and tools put into a layer by hand."""
    make_input = INPUTS.get(input, _same)
    found = {state: deviation(TWINS[name], make_input=make_input, change=change) for state, change in STATES.items()}
    assert unexpected(name, f"state, {input} input", found) == {}


CONTEXTS = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("name", TWINS)
def test_contexts(name, context):
    twin = TWINS[name]
    kinds = ("2-d", "3-d", "4-d", "5-d", "leaf", "inference", "bfloat16", "channels last")
    with CONTEXTS[context]():
        found = {kind: deviation(twin, {}, INPUTS[kind]) for kind in kinds}
    assert unexpected(name, context, found) == {}


COVERED: set[Kept] = set()


def unexpected(name: str, case: str, found: dict[str, str]) -> dict[str, str]:
    """The deviations among what was found, by kind, without those that are kept on purpose."""
    deviations = {kind: text for kind, text in found.items() if text}
    covering = {kind: {kept for kept in KEPT if kept.covers(name, case, text)} for kind, text in deviations.items()}
    COVERED.update(*covering.values())
    return {kind: text for kind, text in deviations.items() if not covering[kind]}


def test_every_deviation_that_is_kept_is_one(request):
    if request.config.getoption("keyword") or any("::" in argument for argument in request.config.args):
        pytest.skip("needs all tests of this file")
    assert [kept for kept in KEPT if kept not in COVERED] == []
