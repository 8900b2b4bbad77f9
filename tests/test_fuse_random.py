"""fuse on layers that draw random numbers: with stock's masks, with ours from a seed, and layers that stay stock."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fuse_case import assert_same_training, chains, image
from fuse_models import CASES, FeedForward, NormDropout, Paths, Tails
from torch import Tensor, nn

import fusedtricks
import fusedtricks.functional as FF
import fusedtricks.nn as ftnn
from fusedtricks.fusing import dynamo
from fusedtricks.fusing.running.masks import stock_dropout

SEED = 5
P = 0.375  # 1 / (1 - p) is not a power of two


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The operators that ran."""
    seen: list[str] = []

    def spied(name: str) -> Callable[..., Any]:
        function = getattr(FF, name)
        return lambda *args, **kwargs: (seen.append(name), function(*args, **kwargs))[1]

    for name in (
        *("act_dropout", "drop_path", "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout"),
        *("feature_alpha_dropout", "fractional_max_pool2d", "fractional_max_pool3d"),
    ):
        monkeypatch.setattr(FF, name, spied(name))
    return seen


def gradients(y: Tensor, *of: Tensor) -> list[Tensor]:
    weights = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape)
    return [y.detach(), *torch.autograd.grad(y, of, weights)]


@pytest.mark.parametrize(
    "name", ["NormDropout", "NormThenDropout", "Tails", "TailFunctions", "TailOutputs", "TailChanged", "Paths"]
)
@pytest.mark.parametrize("compiled", [False, True])
def test_models_that_drop_with_the_masks_of_stock(name, compiled):
    make: Any = CASES[name].make
    stock = make(P).double()
    twin = copy.deepcopy(stock)
    fused = torch.compile(twin, backend=dynamo.backend) if compiled else fusedtricks.fuse(twin)
    assert_same_training(fused, stock)
    torch._dynamo.reset()


ACTS = [
    *(nn.ReLU(inplace=True), nn.ReLU6(), nn.LeakyReLU(0.2), nn.ELU(0.5), nn.SELU(), nn.GELU(), nn.GELU("tanh")),
    *(nn.Sigmoid(), nn.Tanh(), nn.SiLU(), nn.Mish(), nn.Hardswish(), nn.Hardsigmoid(), nn.Softplus(2.0)),
]


class Tail(nn.Module):
    def __init__(self, act: nn.Module, linear: bool = True, residual: bool = True) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 6) if linear else nn.Linear(5, 6, bias=False)
        self.act, self.drop, self.residual = act, nn.Dropout(P), residual
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor, r: Tensor) -> Tensor:
        y = self.drop(self.act(self.fc(x)))
        return self.last(y + r if self.residual else y)


@pytest.mark.parametrize("act", ACTS, ids=repr)
@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("residual", [True, False])
def test_tails_drop_what_their_seed_says(act, linear, residual, kernels):
    """Same results and gradients as stock's members with the mask that the operator draws from torch's generator."""
    stock = Tail(act, linear, residual).double()
    fused = fusedtricks.fuse(stock)
    assert [e.what for e in fusedtricks.report(fused).chains] == [
        ("fc → " if linear else "") + "act → drop" + (" + residual" if residual else "")
    ]
    x = torch.randn(3, 2, 5, dtype=torch.float64, requires_grad=True)
    r = torch.randn(3, 2, 6, dtype=torch.float64, requires_grad=True)
    inputs = (x, r) if residual else (x,)
    torch.manual_seed(SEED)
    actual = gradients(fused(x, r), *inputs, *fused.parameters())
    assert kernels == ["act_dropout"]
    torch.manual_seed(SEED)
    mask = FF.dropout(torch.ones(3, 2, 6, dtype=torch.float64), P)
    assert 0 < mask.count_nonzero() < mask.numel()
    stock.drop.register_forward_hook(lambda m, x, y: x[0] * mask)
    expected = gradients(stock(x, r), *inputs, *stock.parameters())
    # In float64 too, stock's gradient of hardsigmoid multiplies by a 1/6 in float32.
    tolerance = 1e-7 if isinstance(act, nn.Hardsigmoid) else 1e-9
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("act", [nn.ReLU(), nn.LeakyReLU(), nn.GELU()], ids=repr)
def test_batch_norm_drops_what_its_seed_says(act, residual, calls):
    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.act, self.drop, self.conv = nn.BatchNorm2d(4), act, nn.Dropout(P), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor, r: Tensor) -> Tensor:
            z = self.norm(x)
            return self.conv(self.drop(self.act(z + r if residual else z))) + r.mul(r)

    stock = Norm().double()
    fused = fusedtricks.fuse(stock)
    assert chains(fused) == 1
    x, r = image().requires_grad_(), image().requires_grad_()
    inputs = (x, r) if residual else (x,)
    torch.manual_seed(SEED)
    actual = gradients(fused(x, r), *inputs, *fused.parameters())
    torch.manual_seed(SEED)
    mask = FF.dropout(torch.ones_like(x), P)
    stock.drop.register_forward_hook(lambda m, x, y: x[0] * mask)
    torch.testing.assert_close(actual, gradients(stock(x, r), *inputs, *stock.parameters()), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(dict(fused.state_dict()), dict(stock.state_dict()))
    assert len(calls) == 1


@pytest.mark.parametrize("frozen", ["norm", "drop"])
def test_batch_norm_and_its_dropout_in_different_modes(frozen, calls, kernels):
    """A BatchNorm in evaluation does not apply dropout itself: a training dropout runs after it."""
    stock = NormDropout(P).double()
    fused = fusedtricks.fuse(stock)
    for model in (stock, fused):
        (model.bn1 if frozen == "norm" else model.drop).eval()
    assert_same_training(fused, stock)
    kernels.clear()
    assert fused(image()).isfinite().all() and calls
    assert kernels == (["dropout"] if frozen == "norm" else [])


def test_drop_path_drops_what_its_seed_says(kernels):
    stock = Paths(P).double()
    fused = fusedtricks.fuse(stock)
    x = torch.randn(16, 4, 4, 3, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(SEED)
    actual = gradients(fused(x), x, *(p for n, p in fused.named_parameters() if "bn2" not in n))
    assert kernels == ["drop_path"] * 3
    torch.manual_seed(SEED)
    seeds = iter([FF.drop_path(torch.ones(16, 1, 1, 1, dtype=torch.float64), P) for _ in range(3)])
    stock.path.register_forward_hook(lambda m, x, y: x[0] * next(seeds))
    expected = gradients(stock(x), x, *(p for n, p in stock.named_parameters() if "bn2" not in n))
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


class Timm(nn.Module):
    """Stands in for a class of a package that is not installed; only its name and attributes matter."""

    __module__, __qualname__ = "timm.layers.drop", "DropPath"

    def __init__(self, p: float) -> None:
        super().__init__()
        self.drop_prob, self.scale_by_keep = p, False

    def forward(self, x: Tensor) -> Tensor:
        if self.drop_prob == 0.0 or not self.training:
            return x
        return x * x.new_empty(x.shape[0], *(1,) * (x.dim() - 1)).bernoulli_(1 - self.drop_prob)


class Torchvision(nn.Module):
    __module__, __qualname__ = "torchvision.ops.stochastic_depth", "StochasticDepth"

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p, self.mode = p, "batch"

    def forward(self, x: Tensor) -> Tensor:
        return x * x.new_empty(1).bernoulli_(1 - self.p).div(1 - self.p) if self.training else x


class CopiedDropPath(nn.Module):
    """Like the one in Hugging Face's models."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.drop_prob = p

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.drop_prob == 0.0 or not self.training:
            return hidden_states
        keep_prob = 1 - self.drop_prob
        shape = (hidden_states.shape[0],) + (1,) * (hidden_states.ndim - 1)
        random_tensor = torch.rand(shape, dtype=hidden_states.dtype, device=hidden_states.device)
        random_tensor = torch.floor(random_tensor + keep_prob)
        return hidden_states.div(keep_prob) * random_tensor


class ChangedDropPath(CopiedDropPath):
    """Almost the same, but it rounds up."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.drop_prob == 0.0 or not self.training:
            return hidden_states
        keep_prob = 1 - self.drop_prob
        shape = (hidden_states.shape[0],) + (1,) * (hidden_states.ndim - 1)
        random_tensor = torch.rand(shape, dtype=hidden_states.dtype, device=hidden_states.device)
        random_tensor = torch.ceil(random_tensor + keep_prob)
        return hidden_states.div(keep_prob) * random_tensor


class Block(nn.Module):
    def __init__(self, path: nn.Module) -> None:
        super().__init__()
        self.conv, self.path = nn.Conv2d(4, 4, 1), path

    def forward(self, x: Tensor) -> Tensor:
        return x + self.path(self.conv(x))


@pytest.mark.parametrize(
    "path, mode, scale", [(Timm, "row", False), (Torchvision, "batch", True), (CopiedDropPath, "row", True)]
)
def test_stochastic_depth_of_other_packages(path, mode, scale, kernels):
    stock = Block(path(P)).double()
    fused = fusedtricks.fuse(stock)
    assert [e.what for e in fusedtricks.report(fused).chains] == ["path + residual"]
    assert_same_training(fused, stock)
    assert not kernels  # with stock's masks
    x = image(16, 4, 3, 3)
    torch.manual_seed(SEED)
    actual = fused(x)
    torch.manual_seed(SEED)
    expected = x + FF.drop_path(stock.conv(x), P, mode=mode, scale_by_keep=scale)
    torch.testing.assert_close(actual, expected)
    fused.path.p = fused.path.drop_prob = 1.0
    assert torch.equal(fused.eval()(x), stock.eval()(x))


def test_transformers_drop_path():
    beit = pytest.importorskip("transformers.models.beit.modeling_beit", reason="one of the test extras")
    assert chains(fusedtricks.fuse(Block(beit.BeitDropPath(P)))) == 1


@pytest.mark.parametrize("path", [ChangedDropPath(P), nn.Sequential(nn.Identity())])
def test_what_is_no_stochastic_depth(path, kernels):
    fused = fusedtricks.fuse(Block(path).double())
    assert not chains(fused)
    fused(image())
    assert not kernels


def forward_hook(module: nn.Module) -> None:
    module.register_forward_hook(lambda m, x, y: y * 2)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "hook on linear": lambda m: forward_hook(m.fc1),
    "hook on activation": lambda m: forward_hook(m.act),
    "hook on dropout": lambda m: forward_hook(m.drop1),
    "patched": lambda m: setattr(m.fc1, "forward", lambda x: F.linear(x, m.fc1.weight) * 3),
    "parametrized": lambda m: nn.utils.parametrize.register_parametrization(m.fc1, "weight", nn.Softplus()),
    "spectral norm": lambda m: nn.utils.spectral_norm(m.fc1),
    "other linear": lambda m: setattr(m, "fc1", nn.Sequential(m.fc1)),
    "no bias": lambda m: m.fc1.register_parameter("bias", None),
    "other activation": lambda m: setattr(m, "act", nn.Softshrink()),
    "other dropout": lambda m: setattr(m, "drop1", nn.AlphaDropout(P)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_after_fusing(change, kernels):
    """The first of two chains runs its members."""
    stock = FeedForward(P).double()
    fused = fusedtricks.fuse(stock)
    for model in (stock, fused):
        torch.manual_seed(1)
        CHANGES[change](model)
    assert_same_training(fused, stock)
    kernels.clear()
    fused.train()(image())
    assert kernels.count("act_dropout") == 1


def test_members_are_looked_up(kernels):
    """p, the activation's parameters, the layers themselves and the mode are looked up at call time."""
    stock = Tails(0.0, nn.LeakyReLU(0.1)).double()
    fused = fusedtricks.fuse(stock)
    for model in (stock, fused):
        model.act.negative_slope = 0.5
        model.fc1.weight.data.mul_(2)
        model.fc1.bias.data.add_(1)
    assert_same_training(fused, stock)
    assert set(kernels) == {"act_dropout"}  # for linear, activation and a dropout that drops nothing
    kernels.clear()
    fused.drop1.p = fused.drop2.p = 1.0
    assert torch.equal(fused.eval()(image()), fused.eval()(image())) is False
    assert kernels.count("act_dropout") == 2
    x = image()
    torch.testing.assert_close(fused.train()(x), x)  # only the residual is left


def test_in_place_since(kernels):
    """An activation that was made in-place later writes to its input, which others see."""

    class Seen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act, self.drop = nn.ReLU(), nn.Dropout(0.0)

        def forward(self, x: Tensor) -> Tensor:
            y = x * 1
            z = y[:]
            return self.drop(self.act(z)) * y

    stock = Seen()
    fused = fusedtricks.fuse(stock)
    assert chains(fused) == 1
    x = image()
    torch.testing.assert_close(fused(x), stock(x), rtol=0, atol=0)
    assert kernels == ["act_dropout"]
    for model in (stock, fused):
        model.act.inplace = True
    torch.testing.assert_close(fused(x), stock(x), rtol=0, atol=0)
    assert kernels.count("act_dropout") == 1


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("residual_first", [False, True])
@pytest.mark.parametrize("kind", ["same", "broadcast", "dtype", "strides", "scalar"])
def test_residuals_that_do_not_fit(kind, residual_first, in_place, kernels):
    """Dtype, strides and gradients are those of the addition as the user wrote it."""

    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.drop = nn.Linear(5, 6), nn.Dropout(0.0)

        def forward(self, x: Tensor, r: Tensor) -> Tensor:
            y = self.drop(F.leaky_relu(self.fc(x)))
            s = torch.relu(r)
            if residual_first:
                s, y = y, s
            if in_place:
                y += s
                return y
            return y + s

    residual = {
        "same": torch.randn(4, 3, 6),
        "broadcast": torch.randn(1, 6),
        "dtype": torch.randn(4, 3, 6).double(),
        "strides": torch.randn(3, 4, 6).transpose(0, 1),
        "scalar": torch.randn(()),
    }[kind].requires_grad_()
    stock = Added()
    fused = fusedtricks.fuse(stock)
    x = torch.randn(4, 3, 5, requires_grad=True)
    try:
        expected = gradients(stock(x, residual), x, residual, *stock.parameters())
    except RuntimeError as error:  # for example an in-place broadcast, or a change after ReLU
        if "modified by an inplace operation" not in str(error):
            with pytest.raises(RuntimeError, match=re.escape(str(error))):
                fused(x, residual)
        return
    actual = gradients(fused(x, residual), x, residual, *fused.parameters())
    torch.testing.assert_close(actual, expected)
    assert actual[0].stride() == expected[0].stride()
    if chains(fused) and kind == "same":
        assert kernels == ["act_dropout"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision(dtype):
    stock = Tails().to(dtype)
    x = image().to(dtype)
    expected = copy.deepcopy(stock).double()(x.double())
    error = (stock(x).double() - expected).abs().max()
    assert (fusedtricks.fuse(stock)(x).double() - expected).abs().max() <= 1.5 * error + 1e-6


def test_autocast(kernels):
    """The bias stays float32, like a BatchNorm's running statistics, so the result is more accurate than stock's."""
    stock = Tails(0.0)
    fused = fusedtricks.fuse(stock)
    x = image().float()
    with torch.autocast("cpu", torch.bfloat16):
        actual, expected = fused(x), stock(x)
    assert actual.dtype is expected.dtype and actual.stride() == expected.stride()
    truth = stock(x)
    assert (actual - truth).abs().max() <= 1.5 * (expected - truth).abs().max()
    assert kernels.count("act_dropout") == 1


def test_only_stock_takes():
    """Integers, nested tensors, vectors: the members' results or errors."""
    stock = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Dropout(P), nn.Linear(4, 4)).eval()
    fused = fusedtricks.fuse(stock)
    assert chains(fused) == 1
    torch.testing.assert_close(fused(torch.ones(4)), stock(torch.ones(4)))
    nested = torch.nested.nested_tensor([torch.randn(2, 4), torch.randn(3, 4)])
    for actual, expected in zip(fused(nested).unbind(), stock(nested).unbind(), strict=True):
        torch.testing.assert_close(actual, expected)
    for wrong in (torch.ones(4, dtype=torch.int64), torch.ones(3)):
        with pytest.raises(RuntimeError) as expected_error:
            stock(wrong)
        with pytest.raises(RuntimeError, match=re.escape(str(expected_error.value)[:20])):
            fused(wrong)
    fused[2].p = 2.0
    with pytest.raises(ValueError, match="dropout probability has to be between 0 and 1, but got 2"):
        fused(torch.ones(4))


def test_dropout_false():
    """Layers that draw random numbers are not touched; the rest is fused as usual."""
    for make in (Tails, NormDropout, Paths):
        report = fusedtricks.report(fusedtricks.fuse(make(P), dropout=False))
        text = str([entry.what for entry in (*report.chains, *report.singles)])
        assert "drop" not in text.lower() and "path" not in text.lower(), report
    pools = nn.Sequential(nn.ReLU(), nn.FractionalMaxPool2d(2, 3))
    assert [e.what for e in fusedtricks.report(fusedtricks.fuse(pools, dropout=False)).singles] == ["ReLU"]


SWAPPED: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "dropout": (nn.Dropout(P), (3, 4)),
    "dropout1d": (nn.Dropout1d(P), (3, 4, 5)),
    "dropout2d": (nn.Dropout2d(P, inplace=True), (3, 4, 5, 2)),
    "dropout3d": (nn.Dropout3d(P), (3, 4, 5, 2, 3)),
    "alpha_dropout": (nn.AlphaDropout(P, inplace=True), (3, 4)),
    "feature_alpha_dropout": (nn.FeatureAlphaDropout(P), (3, 4, 5)),
    "fractional_max_pool2d": (nn.FractionalMaxPool2d((2, 3), output_ratio=0.6), (3, 4, 7, 9)),
    "fractional_max_pool3d": (nn.FractionalMaxPool3d(2, 4, return_indices=True), (1, 2, 6, 7, 8)),
}


def first(y: Any) -> Tensor:
    return y[0] if isinstance(y, tuple) else y


@pytest.mark.parametrize("name", SWAPPED)
def test_modules_one_for_one(name, kernels):
    """Ours with our seed; stock's random numbers if requested; `unfuse` restores stock's class."""
    stock, shape = SWAPPED[name]
    fused = fusedtricks.fuse(stock)
    assert isinstance(fused, type(stock)) and [e.what for e in fusedtricks.report(fused).singles] == [
        type(stock).__name__
    ]
    x = torch.randn(shape, dtype=torch.float64)
    torch.manual_seed(SEED)
    ours = first(fused(x.clone()))
    assert kernels == [name]
    torch.manual_seed(SEED)
    assert not torch.equal(ours, first(stock(x.clone())))
    torch.manual_seed(SEED)
    assert torch.equal(ours, first(copy.deepcopy(fused)(x.clone())))
    kernels.clear()
    for training in (True, False):
        with stock_dropout():
            torch.manual_seed(SEED)
            actual = fused.train(training)(x.clone())
            torch.manual_seed(SEED)
            torch.testing.assert_close(actual, stock.train(training)(x.clone()), rtol=0, atol=0)
    assert not kernels
    stock.train()
    assert type(fusedtricks.unfuse(fused)) is type(stock)


class Functions(nn.Module):
    def forward(self, x: Tensor) -> Any:
        y = F.dropout(F.dropout1d(x, P, self.training), P, self.training)
        y = F.alpha_dropout(F.feature_alpha_dropout(y, training=self.training), training=self.training)
        y = F.dropout2d(y[:, None], P, self.training) * 2
        z = F.dropout3d(y[:, None], p=P, training=self.training)[:, 0]
        return F.fractional_max_pool2d(z, 2, 3) + F.fractional_max_pool3d(z.transpose(0, 1), (1, 2, 2), (1, 3, 3))


@pytest.mark.parametrize("compiled", [False, True])
def test_functions_one_for_one(compiled, kernels):
    stock, x = Functions(), torch.randn(3, 5, 6)
    fused = torch.compile(copy.deepcopy(stock), backend=dynamo.backend) if compiled else fusedtricks.fuse(stock)
    fused(x)
    names = ["dropout1d", "dropout", "feature_alpha_dropout", "alpha_dropout", "dropout2d", "dropout3d"]
    assert kernels == [*names, "fractional_max_pool2d", "fractional_max_pool3d"]
    with stock_dropout():
        for training in (True, False):
            torch.manual_seed(SEED)
            actual = fused.train(training)(x)
            torch.manual_seed(SEED)
            torch.testing.assert_close(actual, stock.train(training)(x), rtol=0, atol=0)
    torch._dynamo.reset()


def test_dimensions_that_only_stock_takes():
    """They give stock's warnings and errors."""
    fused = fusedtricks.fuse(nn.Dropout2d(P))
    with pytest.warns(UserWarning, match="Received a 3D input to dropout2d"):
        assert fused(torch.ones(3, 4, 5)).shape == (3, 4, 5)
    with pytest.raises(RuntimeError, match="Expected 2D or 3D input"):
        fusedtricks.fuse(nn.Dropout1d(P))(torch.ones(2, 3, 4, 5))


@pytest.mark.parametrize("act", [nn.ReLU(inplace=True), nn.LeakyReLU(0.2), nn.Sigmoid(), nn.ELU(), nn.Softplus()])
@pytest.mark.parametrize("dims", [2, 3])
def test_pooling_before_a_monotone_activation(act, dims, kernels):
    """With given regions, stock's result and gradient; otherwise it draws its own regions."""
    kinds: Any = {2: (nn.Conv2d, nn.FractionalMaxPool2d), 3: (nn.Conv3d, nn.FractionalMaxPool3d)}[dims]
    pool = kinds[1](2, output_size=4, _random_samples=torch.rand(3, 4, dims, dtype=torch.float64))
    stock = nn.Sequential(kinds[0](4, 4, 1), act, pool, kinds[0](4, 2, 1)).double()
    fused = fusedtricks.fuse(stock)
    assert [e.what for e in fusedtricks.report(fused).chains] == ["1 → 2"]
    x = torch.randn((3, 4) + (7,) * dims, dtype=torch.float64, requires_grad=True)
    actual = gradients(fused(x), x, *fused.parameters())
    assert kernels == [f"fractional_max_pool{dims}d"]
    torch.testing.assert_close(actual, gradients(stock(x), x, *stock.parameters()))
    pool._random_samples = None
    assert_same_pooling(fusedtricks.fuse(stock), stock, x)


def assert_same_pooling(fused: nn.Module, stock: nn.Module, x: Tensor) -> None:
    with stock_dropout():
        torch.manual_seed(SEED)
        expected = stock(x)
        torch.manual_seed(SEED)
        torch.testing.assert_close(fused(x), expected)
    torch.manual_seed(SEED)
    assert not torch.equal(fused(x), expected)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m, "1", nn.GELU()),
        lambda m: setattr(m[1], "negative_slope", -0.5),
        lambda m: setattr(m, "2", nn.FractionalMaxPool2d(2, 3, return_indices=True)),
        lambda m: forward_hook(m[2]),
        lambda m: setattr(m, "2", nn.MaxPool2d(2)),
    ],
)
def test_pooling_that_is_changed_after_fusing(change, kernels):
    stock = nn.Sequential(nn.Conv2d(4, 4, 1), nn.LeakyReLU(), nn.FractionalMaxPool2d(2, 3), nn.Identity())
    stock.append(nn.Conv2d(4, 2, 1)).double()
    fused = fusedtricks.fuse(stock)
    assert chains(fused) == 1
    for model in (stock, fused):
        change(model)
        model[4] = ftnn.Identity()
        model[2]._random_samples = torch.linspace(0, 0.9, 24, dtype=torch.float64).view(3, 4, 2)
    x = image()
    torch.testing.assert_close(fused(x), stock(x))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m, "pooler", nn.AvgPool2d(2)),
        lambda m: setattr(m.pooler, "ceil_mode", True),
        lambda m: setattr(m.pooler, "dilation", 2),
        lambda m: forward_hook(m.pooler),
        lambda m: forward_hook(m.norm),
        lambda m: setattr(m, "act", nn.Softshrink()),
    ],
)
def test_stems_that_are_changed_after_fusing(change):
    class Stem(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.act = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU()
            self.pooler = nn.MaxPool2d(3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.pooler(self.act(self.norm(self.conv(x))))

    stock = Stem().double()
    fused = fusedtricks.fuse(stock)
    assert [e.what for e in fusedtricks.report(fused).chains] == ["norm → act → pooler"]
    for model in (stock, fused):
        change(model)
    assert_same_training(fused, stock)


def test_report():
    """The report lists fused chains by the names of their members."""
    reports = {
        name: fusedtricks.report(fusedtricks.fuse(CASES[name].make())).chains for name in ("Tails", "NormDropout")
    }
    assert [e.what for e in reports["Tails"]] == ["fc1 → act → drop1", "fc2 → drop2 + residual"]
    assert [e.what for e in reports["NormDropout"]] == ["bn1 → relu → drop", "bn2 + residual → silu → dropout"]


def test_compile_a_fused_model():
    """No graph breaks, and the same masks as the eager model."""
    fused = fusedtricks.fuse(nn.Sequential(Tails(P), Paths(P), NormDropout(P)).double())
    twin = copy.deepcopy(fused)
    torch._dynamo.reset()
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    x = image()
    torch.manual_seed(SEED)
    expected = fused(x)
    torch.manual_seed(SEED)
    torch.testing.assert_close(compiled(x), expected)
    torch.testing.assert_close(compiled.eval()(x), fused.eval()(x))
    torch._dynamo.reset()
