"""Every layer and function of ours beside the stock code it replaces, and what comes of a call of either."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fusedtricks.functional as ftF
import fusedtricks.nn as ftnn

LENGTH = 4
"""Of every dimension of the inputs: the batch, the channels and the image."""

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Twin:
    """Ours and stock's. Both are built from the same settings; what they build is called with the input alone.

    Attributes:
        fused: builds ours.
        stock: builds stock's.
        rank: dimensions of a valid input.
        given: settings without which nothing can be built.
        varied: the names of the settings to vary.
        draws: whether the results are random.
    """

    fused: Callable[..., Callable[[Any], Any]]
    stock: Callable[..., Callable[[Any], Any]]
    rank: int
    given: Settings = field(default_factory=dict)
    varied: tuple[str, ...] = ()
    draws: bool = False

    def input(self) -> Tensor:
        return values((LENGTH,) * self.rank)


def values(shape: tuple[int, ...]) -> Tensor:
    """Different values on both sides of 0, in no order."""
    count = torch.Size(shape).numel()
    return (torch.arange(count) * 7 % max(1, count)).mul(5.5 / max(1, count)).sub(2.6).view(shape)


def _activations() -> Iterator[tuple[str, Twin]]:
    varied = {
        "ReLU": ("inplace",),
        "ReLU6": ("inplace",),
        "LeakyReLU": ("negative_slope", "inplace"),
        "ELU": ("alpha", "inplace"),
        "SELU": ("inplace",),
        "GELU": ("approximate",),
        "Sigmoid": (),
        "Tanh": (),
        "SiLU": ("inplace",),
        "Mish": ("inplace",),
        "Hardswish": ("inplace",),
        "Hardsigmoid": ("inplace",),
        "Softplus": ("beta", "threshold"),
    }
    for name, settings in varied.items():
        yield name, Twin(getattr(ftnn, name), getattr(nn, name), 2, varied=settings)
        function = {"LeakyReLU": "leaky_relu"}.get(name, name.lower())
        yield function, Twin(_called(getattr(ftF, function)), _called(getattr(F, function)), 2, varied=settings)


def _called(function: Callable[..., Any]) -> Callable[..., Callable[[Any], Any]]:
    """A function with its settings, called with the input."""
    return lambda **settings: partial(_call, function, settings)


def _call(function: Callable[..., Any], settings: Settings, x: Any) -> Any:
    return function(x, **settings)


def _dropouts() -> Iterator[tuple[str, Twin]]:
    ranks = {"Dropout": 2, "Dropout1d": 3, "Dropout2d": 4, "Dropout3d": 5, "AlphaDropout": 2, "FeatureAlphaDropout": 3}
    functions = ["dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"]
    for (name, rank), function in zip(ranks.items(), functions, strict=True):
        yield name, Twin(getattr(ftnn, name), getattr(nn, name), rank, varied=("p", "inplace"), draws=True)
        pair = (_called(getattr(ftF, function)), _called(getattr(F, function)))
        yield function, Twin(*pair, rank, {"training": True}, ("p", "training", "inplace"), draws=True)
    yield (
        "ActDropout",
        Twin(
            partial(ftnn.ActDropout, "relu"),
            lambda **settings: nn.Sequential(nn.ReLU(), nn.Dropout(**settings)),
            2,
            varied=("p",),
            draws=True,
        ),
    )


def _linear() -> Iterator[tuple[str, Twin]]:
    sizes = {"in_features": LENGTH, "out_features": 3}
    parts = ("in_features", "out_features", "bias", "device", "dtype")
    yield (
        "LinearActDropout",
        Twin(
            partial(ftnn.LinearActDropout, p=0.0),
            lambda **settings: nn.Sequential(nn.Linear(**settings), nn.ReLU()),
            2,
            sizes,
            parts,
        ),
    )
    yield "DropConnectLinear", Twin(partial(ftnn.DropConnectLinear, p=0.0), nn.Linear, 2, sizes, parts)
    weights = {"weight": values((3, LENGTH)), "bias": values((3,))}
    ours = partial(ftF.drop_connect_linear, p=0.0)
    yield "drop_connect_linear", Twin(_called(ours), _called(F.linear), 2, weights, ("weight", "bias"))


def _convolutions() -> Iterator[tuple[str, Twin]]:
    given = {"in_channels": LENGTH, "out_channels": 2, "kernel_size": 2}
    windows = ("stride", "padding", "dilation", "groups")
    layer = ("kernel_size", *windows, "bias", "padding_mode", "in_channels", "out_channels", "device", "dtype")
    for d in (1, 2, 3):
        ours, stock = getattr(ftnn, f"DropConnectConv{d}d"), getattr(nn, f"Conv{d}d")
        yield ours.__name__, Twin(partial(ours, p=0.0), stock, d + 2, given, layer)
        weights = {"weight": values((2, LENGTH, *[2] * d)), "bias": values((2,))}
        function, plain = getattr(ftF, f"drop_connect_conv{d}d"), getattr(F, f"conv{d}d")
        pair = (_called(partial(function, p=0.0)), _called(plain))
        yield function.__name__, Twin(*pair, d + 2, weights, (*windows, "weight", "bias"))


NORM = ("num_features", "eps", "momentum", "affine", "track_running_stats", "bias", "device", "dtype")
WINDOWS = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")


def _batch_norms() -> Iterator[tuple[str, Twin]]:
    given = {"num_features": LENGTH}
    for d in (1, 2, 3):
        stock = getattr(nn, f"BatchNorm{d}d")
        yield (
            f"BatchNormAct{d}d",
            Twin(partial(getattr(ftnn, f"BatchNormAct{d}d"), act="silu"), _then(stock, nn.SiLU()), d + 2, given, NORM),
        )
        yield (
            f"BatchNormReLU{d}d",
            Twin(getattr(ftnn, f"BatchNormReLU{d}d"), _then(stock, nn.ReLU()), d + 2, given, NORM),
        )
    yield "SyncBatchNormAct", Twin(ftnn.SyncBatchNormAct, _then(nn.SyncBatchNorm, nn.ReLU()), 4, given, NORM)
    yield (
        "BatchNormActMaxPool2d",
        Twin(ftnn.BatchNormActMaxPool2d, _stem, 4, {**given, "kernel_size": 2}, (*NORM, *WINDOWS)),
    )
    state = {
        "running_mean": values((LENGTH,)),
        "running_var": values((LENGTH,)).abs(),
        "weight": values((LENGTH,)),
        "bias": values((LENGTH,)),
        "training": True,
    }
    varied = (*state, "momentum", "eps")
    ours = partial(ftF.batch_norm_act, act="identity")
    yield "batch_norm_act", Twin(_called(ours), _called(F.batch_norm), 4, state, varied)
    pooled = partial(ftF.batch_norm_act_max_pool2d, act="identity")
    yield (
        "batch_norm_act_max_pool2d",
        Twin(_called(pooled), _called(_pooled), 4, {**state, "kernel_size": 2}, (*varied, *WINDOWS)),
    )


def _then(norm: Callable[..., nn.Module], act: nn.Module) -> Callable[..., nn.Module]:
    return lambda **settings: nn.Sequential(norm(**settings), copy.deepcopy(act))


def _stem(**settings: Any) -> nn.Module:
    windows = {name: settings.pop(name) for name in WINDOWS if name in settings}
    return nn.Sequential(nn.BatchNorm2d(**settings), nn.ReLU(), nn.MaxPool2d(**windows))


def _pooled(x: Tensor, **settings: Any) -> Tensor:
    windows = {name: settings.pop(name) for name in WINDOWS if name in settings}
    return F.max_pool2d(F.batch_norm(x, **settings), **windows)


def _fractional_pools() -> Iterator[tuple[str, Twin]]:
    varied = ("kernel_size", "output_size", "output_ratio", "return_indices", "_random_samples")
    for d in (2, 3):
        given = {"kernel_size": 2, "output_size": 2, "_random_samples": torch.full((LENGTH, LENGTH, d), 0.3)}
        name = f"FractionalMaxPool{d}d"
        yield name, Twin(getattr(ftnn, name), getattr(nn, name), d + 2, given, varied)
        name = f"fractional_max_pool{d}d"
        pair = _called(getattr(ftF, name)), _called(getattr(F, name))
        yield name, Twin(*pair, d + 2, given, varied)
        given = {"kernel_size": 2, "output_ratio": (0.5,) * d, "_random_samples": given["_random_samples"]}
        yield f"{name} by ratio", Twin(*pair, d + 2, given, ("output_size", "output_ratio", "kernel_size"))
        name = f"FractionalMaxPool{d}d"
        pair = getattr(ftnn, name), getattr(nn, name)
        yield f"{name} by ratio", Twin(*pair, d + 2, given, ("output_size", "output_ratio", "kernel_size"))


TWINS: dict[str, Twin] = {
    name: twin
    for group in (_activations, _dropouts, _linear, _convolutions, _batch_norms, _fractional_pools)
    for name, twin in group()
}

Outcome = dict[str, Any]
"""What came of a call, by name: tensors, facts about them, or the class of the error and where it was raised."""


def outcome(
    build: Callable[[], Callable[[Any], Any]], make_input: Callable[[], Any], draws: bool, change: Callable[[Any], None]
) -> Outcome:
    """Builds, calls in training and in evaluation, differentiates.

    Args:
        build: builds a layer, or a function that takes the input only.
        make_input: the input of one call.
        draws: describe results by which values occur in several calls.
        change: is given what was built before it is called.
    """
    found: Outcome = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _observe(found, build, make_input, draws, change)
    # Those that torch triggers internally come once a process only.
    found["warnings"] = sorted({w.category.__name__ for w in caught if "Triggered internally" not in str(w.message)})
    return found


def _observe(found: Outcome, build: Any, make_input: Any, draws: bool, change: Any) -> None:
    stage = "construction"
    try:
        layer = build()
        stage = "input"
        example = make_input()
        few = not isinstance(example, Tensor) or example.is_nested or example.numel() < LENGTH**2
        times = (16 if few else 4) if draws else 1
        stage = "change"
        with torch.no_grad():
            _set_parameters(layer)
            change(layer)
        for mode in ("training", "evaluation") if isinstance(layer, nn.Module) else ("call",):
            stage = mode
            if isinstance(layer, nn.Module):
                layer.train(mode == "training")
            runs = [_run(layer, make_input()) for _ in range(times)]
            found |= {f"{mode}, {name}": _combined([run.get(name) for run in runs], draws) for name in runs[0]}
    except Exception as error:
        found[f"error in {stage}"] = type(error)
        found["message"] = str(error)
    if "layer" in locals():
        found |= {f"{name} afterwards": described(t) for name, t in _state(layer)}


def _state(layer: Any) -> list[tuple[str, Tensor]]:
    """The buffers of a module, or the tensors among a function's settings."""
    named = layer.named_buffers() if isinstance(layer, nn.Module) else layer.args[1].items()
    return [(name.split(".")[-1], t) for name, t in named if isinstance(t, Tensor)]


def _set_parameters(layer: Any) -> None:
    for parameter in layer.parameters() if isinstance(layer, nn.Module) else ():
        if not parameter.is_meta:
            parameter.copy_(torch.linspace(-1, 1.5, parameter.numel()).view(parameter.shape))


def _run(layer: Any, x: Any) -> Outcome:
    result = layer(x)
    found: Outcome = {"is input": result is x}
    parts = result if isinstance(result, tuple) else (result,)
    for i, y in enumerate(parts):
        found[f"result {i}"] = y
    found["input afterwards"] = x
    y = parts[0]
    if isinstance(y, Tensor) and y.requires_grad:
        parameters = [*layer.parameters()] if isinstance(layer, nn.Module) else [t for _, t in _state(layer)]
        leaves = [t for t in (x, *parameters) if isinstance(t, Tensor) and t.requires_grad and t.is_leaf]
        try:
            grads = torch.autograd.grad(y, leaves, torch.ones_like(y), allow_unused=True) if leaves else []
        except Exception as error:
            found["error in backward"] = type(error)
        else:
            found |= {f"gradient {i}": g for i, g in enumerate(grads)}
    return found


def _combined(runs: list[Any], draws: bool) -> Any:
    if not isinstance(runs[0], Tensor):
        return runs[0]
    first = described(runs[0])
    if draws and "values" in first:
        every = torch.cat([_values(t.detach()).flatten() for t in runs])
        first["values"] = torch.cat([every[~every.isnan()].unique(), every[every.isnan()][:1]])
    return first


def described(t: Tensor) -> Any:
    """Everything about a tensor that a caller may see."""
    shape = [tuple(part.shape) for part in t.unbind()] if t.is_nested else tuple(t.shape)
    facts: dict[str, Any] = {"class": type(t), "shape": shape, "dtype": t.dtype, "device": t.device.type}
    facts |= {"layout": t.layout, "requires_grad": t.requires_grad, "inference": t.is_inference()}
    if t.layout == torch.strided and not t.is_nested:
        facts["strides"] = [stride for size, stride in zip(t.shape, t.stride(), strict=True) if size > 1 and t.numel()]
    if not t.is_meta:
        facts["values"] = _values(t.detach())
    return facts


def _values(t: Tensor) -> Tensor:
    """As a plain dense tensor of a dtype that can be compared."""
    if t.is_nested:
        return torch.cat([part.flatten() for part in t.unbind()])
    if t.is_quantized:
        return t.dequantize()
    if t.layout != torch.strided:
        t = t.to_dense()
    return t.float() if t.dtype.itemsize == 1 and t.is_floating_point() else t.clone()


_ROUGH = {torch.float16: 4e-3, torch.bfloat16: 3e-2}


def differences(ours: Outcome, stock: Outcome) -> list[str]:
    """What differs, as text; [] if nothing does."""
    errors = {name for name in (*stock, *ours) if name.startswith("error")}
    found = []
    if any(ours.get(name) is not stock.get(name) for name in errors):
        return [f"stock {_error(stock)}; ours {_error(ours)}"]
    dtypes = {facts["dtype"] for facts in stock.values() if isinstance(facts, dict)}
    rough = max([1e-5, *(_ROUGH[dtype] for dtype in dtypes & _ROUGH.keys())])
    for name in {**stock, **ours}:
        # A call of ours that fails changes nothing; stock has counted the batch by then, and often more.
        if name == "message" or (errors and name.endswith(("afterwards", "warnings"))):
            continue
        a, b = ours.get(name), stock.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            for fact in b:
                if not _same(a.get(fact), b[fact], rough):
                    found.append(f"{name}, {fact}: stock {_short(b[fact])}, ours {_short(a.get(fact))}")
        elif a != b:
            found.append(f"{name}: stock {_short(b)}, ours {_short(a)}")
    return found


def _error(found: Outcome) -> str:
    for name, value in found.items():
        if name.endswith("error in backward") and value:
            return f"{value.__name__} in backward"
    for name, value in found.items():
        if name.startswith("error"):
            return f"{value.__name__} in {name.removeprefix('error in ')} ({found['message'].splitlines()[0][:90]})"
    return "works"


def _short(x: Any) -> str:
    if isinstance(x, Tensor):
        return str(x.flatten()[:6].tolist())
    return x.__name__ if isinstance(x, type) else str(x)[:90]


def _same(a: Any, b: Any, rough: float) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return a == b
    if a.shape != b.shape or a.dtype != b.dtype or torch.equal(a, b):
        return a.shape == b.shape and a.dtype == b.dtype
    try:
        largest = b[b.isfinite()].abs().max().item() if b.isfinite().any() else 1.0
        torch.testing.assert_close(a, b, rtol=rough, atol=rough * max(1.0, largest), equal_nan=True)
    except (AssertionError, NotImplementedError, RuntimeError):
        return False
    return True
