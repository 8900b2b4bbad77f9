"""`to_stock`, `to_fused`, `stock_keys`; TorchScript; folding and quantising what `to_stock` gives."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fuse_models import ResNet
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse as fuse_graph
from torch.nn.utils import prune
from torch.nn.utils.fusion import fuse_conv_bn_eval

import fusedtricks
import fusedtricks.nn as ftnn
from fusedtricks import stock_keys, to_fused, to_stock
from fusedtricks.converting.layers import activate
from fusedtricks.functional import ACTIVATIONS, activation

SAMPLES = {"2d": (4, 4, 6, 6), "1d": (4, 4, 6), "3d": (4, 4, 6, 6, 6)}
WINDOWS = {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 1, "ceil_mode": False}
SINGLES: list[nn.Module] = [
    *(ftnn.ReLU(inplace=True), ftnn.ReLU6(), ftnn.LeakyReLU(0.3), ftnn.ELU(0.7), ftnn.SELU(), ftnn.GELU("tanh")),
    *(ftnn.Sigmoid(), ftnn.Tanh(), ftnn.SiLU(), ftnn.Mish(), ftnn.Hardswish(), ftnn.Hardsigmoid(), ftnn.Softplus(2, 9)),
    *(ftnn.Dropout(0.3), ftnn.Dropout1d(), ftnn.Dropout2d(), ftnn.Dropout3d()),
    *(ftnn.AlphaDropout(), ftnn.FeatureAlphaDropout()),
    *(ftnn.BatchNormAct1d(4, act="identity"), ftnn.BatchNormAct2d(4, act="identity", affine=False)),
    ftnn.BatchNormAct3d(4, act="identity", track_running_stats=False),
    *(ftnn.FractionalMaxPool2d(2, 3, _random_samples=torch.rand(4, 4, 2)), ftnn.FractionalMaxPool3d(2, 3)),
]
OTHERS: list[nn.Module] = [
    *(ftnn.BatchNormReLU1d(4), ftnn.BatchNormReLU2d(4, momentum=None), ftnn.BatchNormReLU3d(4, p=0.3)),
    *(ftnn.BatchNormAct1d(4, act="elu", act_kwargs={"alpha": 0.5}), ftnn.BatchNormAct2d(4, act="gelu_tanh", p=0.2)),
    *(ftnn.BatchNormAct3d(4, act="tanh", affine=False), ftnn.BatchNormAct2d(4, act="identity", p=0.5)),
    ftnn.BatchNormActMaxPool2d(4, (3, 2), 2, 1, ceil_mode=True, act="silu"),
    *(ftnn.ActDropout("gelu", 0.3), ftnn.ActDropout("identity", 0.0), ftnn.LinearActDropout(6, 5, act="selu")),
    *(ftnn.DropConnectLinear(6, 5, act="relu"), ftnn.DropConnectLinear(6, 5, bias=False, inference="moments")),
    *(
        ftnn.DropConnectConv1d(4, 4, 3),
        ftnn.DropConnectConv2d(4, 4, 3, padding="same"),
        ftnn.DropConnectConv3d(4, 2, 3),
    ),
    *(ftnn.Dropout(0.3, mode="classic"), ftnn.DropPath(0.4), ftnn.DropPath(0.4, False)),
    *(ftnn.StochasticDepth(ftnn.Tanh(), mode=mode) for mode in ("row", "batch", "skip")),
    ftnn.FractionalMaxPool2d(2, 3, act="relu", return_indices=True, _random_samples=torch.rand(4, 4, 2)),
    ftnn.FractionalMaxPool3d(2, 3, act="tanh", _random_samples=torch.rand(4, 4, 3)),
    ftnn.SyncBatchNormAct(4, act="silu"),
    ftnn.SyncBatchNormActMaxPool2d(4, windows=WINDOWS),
]


def given(model: nn.Module) -> nn.Module:
    """With parameters and statistics that differ from their first values."""
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.copy_(torch.rand_like(tensor) + 0.5 if tensor.is_floating_point() else tensor + 3)
    return model


def sample(module: nn.Module) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(SAMPLES.get(type(module).__name__[-2:], SAMPLES["2d"]))


def no_drop(module: nn.Module) -> None:
    for name in ("p", "drop_prob"):
        if isinstance(vars(module).get(name), float):
            setattr(module, name, 0.0)


def step(model: nn.Module, x: Tensor, *more: Tensor) -> list[Any]:
    """Results, gradients and buffers of a forward and backward pass."""
    x = x.clone().requires_grad_()
    results = model(x * 1, *more)
    results = results if isinstance(results, tuple) else (results,)
    parameters = [*model.parameters()]
    gradients = torch.autograd.grad(results[0].square().sum(), [x, *parameters])
    return [*results, *gradients, *(buffer.clone() for buffer in model.buffers())]


def ours_in(model: nn.Module) -> list[str]:
    return [type(module).__name__ for module in model.modules() if type(module).__module__.startswith("fusedtricks.nn")]


def check_there_and_back(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Types, settings, keys and checkpoints, both ways."""
    stock = to_stock(model)
    back = to_fused(stock)
    assert not ours_in(stock)
    assert repr(back) == repr(model) and ours_in(back) == ours_in(model)
    assert [module.training for module in back.modules()] == [module.training for module in model.modules()]
    keys, checkpoint = stock_keys(model), model.state_dict()
    assert list(keys) == list(checkpoint) == list(back.state_dict())
    other = given(copy.deepcopy(stock))
    other.load_state_dict({keys[name]: value for name, value in checkpoint.items()}, strict=True)
    torch.testing.assert_close(other.state_dict(), stock.state_dict(), rtol=0, atol=0)
    theirs = stock.state_dict()
    back.load_state_dict({name: theirs[keys[name]] for name in keys}, strict=True)
    torch.testing.assert_close(back.state_dict(), checkpoint, rtol=0, atol=0)
    return stock, back


def name_of(module: nn.Module) -> str:
    return f"{type(module).__name__}-{getattr(module, 'act', '')}-{getattr(module, 'mode', '')}"


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("module", [*SINGLES, *OTHERS], ids=name_of)
def test_there_and_back(module, training):
    module = given(copy.deepcopy(module)).train(training)
    check_there_and_back(module)
    no_drop(module)
    stock = to_stock(module)
    x = sample(module)
    if "Fractional" in type(module).__name__ and module._random_samples is None:
        assert stock(x).shape == module(x).shape
        return
    torch.testing.assert_close(step(stock, x), step(module, x))
    torch.testing.assert_close(step(to_fused(stock), x), step(module, x))


@pytest.mark.parametrize("module", SINGLES, ids=name_of)
def test_singles_become_what_torch_has(module):
    stock = to_stock(module)
    assert type(stock).__module__.startswith("torch.nn.modules.") and stock is not module
    assert list(stock.state_dict()) == list(module.state_dict())


def test_writes_to_the_input_stay():
    for layers in (
        *((nn.ReLU(inplace=True), nn.Dropout(0.0)), (nn.ReLU(inplace=True), nn.Dropout(0.0), nn.Flatten())),
        (nn.Identity(), nn.Dropout(0.0, inplace=True)),
    ):
        x, y = torch.full((2, 3), -1.0), torch.full((2, 3), -1.0)
        nn.Sequential(*layers)(x)
        fused = to_fused(nn.Sequential(*layers))
        fused(y)
        torch.testing.assert_close(x, y)
        assert "ActDropout" not in ours_in(fused)


@pytest.mark.parametrize("more", [[], [nn.Identity()], [nn.Flatten()], [nn.Identity(), nn.Flatten()]])
def test_identities_after_ours(more):
    stock, _ = check_there_and_back(nn.Sequential(ftnn.BatchNormReLU2d(4), *more))
    assert (type(stock[0]) is nn.BatchNorm2d) == (len(more) == 2)


def test_inplace_keeps_every_object():
    model = nn.Sequential(nn.Conv2d(4, 4, 1), ftnn.BatchNormReLU2d(4), ftnn.GELU())
    model[1].weight.requires_grad_(False)
    parameters, modules = [*model.parameters()], [*model]
    assert to_stock(model, inplace=True) is model and [*model] == modules
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert to_fused(model, inplace=True) is model and [*model] == modules
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert not model[1].weight.requires_grad and type(model[1]) is ftnn.BatchNormReLU2d
    norm = ftnn.BatchNormReLU2d(4)
    assert to_stock(norm, inplace=True) is norm and to_fused(norm, inplace=True) is norm


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.first = ftnn.BatchNormReLU2d(4)
        self.second = ftnn.BatchNormAct2d(4, act="silu")
        self.tail = ftnn.ActDropout("tanh", 0.0)
        self.path = ftnn.DropPath(0.0)
        self.none = None
        self.lists = nn.ModuleList([ftnn.BatchNormReLU2d(4), ftnn.ReLU()])
        self.named = nn.ModuleDict({"norm": ftnn.BatchNormReLU2d(4)})

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.conv(self.first(x)), x)
        y = self.tail(y, residual=x)
        for layer in self.lists:
            y = layer(y)
        return self.path(self.named["norm"](y), x)


class Unreadable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = ftnn.BatchNormReLU2d(4)

    def forward(self, x: Tensor) -> Tensor:
        try:
            return self.norm(x, x)
        except ValueError:
            return x


@pytest.mark.parametrize("training", [False, True])
def test_residuals(training):
    model = given(nn.Sequential(Block(), Block(), Unreadable())).double().train(training)
    stock, back = check_there_and_back(model)
    block = stock[0]
    assert type(block.first) is nn.Sequential
    adding = [block.second, block.tail, stock[2].norm, block.lists[0], block.named["norm"]]
    assert all(isinstance(module, nn.Sequential) and type(module) is not nn.Sequential for module in adding)
    assert type(block.lists[1]) is nn.ReLU and block.none is None
    x = sample(model).double()
    expected = step(copy.deepcopy(model), x)
    torch.testing.assert_close(step(stock, x), expected)
    torch.testing.assert_close(step(back, x), expected)


def test_shared_modules_stay_one():
    norm = given(ftnn.BatchNormReLU2d(4))
    model = nn.ModuleDict({"a": norm, "b": nn.Sequential(norm, nn.Identity(), ftnn.ReLU()), "c": nn.ModuleList([norm])})
    stock, back = check_there_and_back(model)
    assert stock["a"] is stock["b"][0] is stock["c"][0] and isinstance(stock["a"], nn.Sequential)
    assert back["a"] is back["b"][0] is back["c"][0]


def test_hooks_move():
    seen: list[Tensor] = []
    model = nn.Sequential(ftnn.BatchNormReLU2d(4), nn.Identity(), ftnn.Tanh())
    model[0].register_forward_hook(lambda module, args, result: seen.append(result))
    model[2].register_full_backward_hook(lambda module, before, after: seen.append(after[0]))
    x = sample(model).requires_grad_()
    model(x).sum().backward()
    expected, count = list(seen), len(seen)
    seen.clear()
    stock = to_stock(model)
    assert type(stock[0]) is nn.Sequential  # not unfolded: the hook sees the activation's result
    stock(x).sum().backward()
    assert len(seen) == count == 2
    torch.testing.assert_close(seen, expected)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda m: setattr(m, "forward", m.forward), "forward of its own"),
        (lambda m: m.register_load_state_dict_post_hook(lambda *a: None), "hooks on its state_dict"),
        (lambda m: m.add_module("extra", nn.ReLU()), "modules in it"),
        (lambda m: torch.nn.utils.parametrize.register_parametrization(m, "weight", nn.Tanh()), "parametrised"),
        (lambda m: prune.random_unstructured(m, "weight", 0.5), "computed or further parameters"),
    ],
)
def test_refusals(spoil, why):
    model = nn.Sequential(ftnn.ReLU(), nn.Sequential(ftnn.LinearActDropout(6, 6)))
    spoil(model[1][0])
    with pytest.raises(ValueError, match=rf"^to_stock\(\): 1\.0 .*{why}"):
        to_stock(model, inplace=True)
    assert type(model[0]) is ftnn.ReLU  # unchanged
    for function in (to_stock, to_fused, stock_keys):
        with pytest.raises(TypeError, match=r"must be torch\.nn\.Module"):
            function(3)


def test_derived_classes_stay():
    class Mine(ftnn.BatchNormReLU2d):
        pass

    class MyNorm(nn.BatchNorm2d):
        pass

    assert type(to_stock(nn.Sequential(Mine(4)))[0]) is Mine
    assert type(to_fused(nn.Sequential(MyNorm(4), nn.ReLU()))[0]) is MyNorm


def vgg() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.GELU(), nn.Dropout(0.0), nn.BatchNorm2d(4)),
        nn.Sequential(nn.BatchNorm2d(4), nn.ELU(0.5), nn.Dropout(0.3)),
        *(nn.AvgPool2d(3), nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Dropout(0.0), nn.Linear(3, 3), nn.Tanh()),
    )


@pytest.mark.parametrize("training", [False, True])
def test_a_stock_network_there_and_back(training):
    model = given(vgg()).train(training)
    fused = to_fused(model)
    assert [type(module) for module in fused[:5]] == [
        *(nn.Conv2d, ftnn.BatchNormReLU2d, nn.Identity, nn.MaxPool2d, nn.Conv2d)
    ]
    assert type(fused[5]) is ftnn.BatchNormAct2d and type(fused[12]) is ftnn.LinearActDropout
    assert type(fused[7]) is ftnn.Dropout  # frozen BatchNorms do not freeze it
    assert type(fused[8]) is type(fused[9]) is ftnn.BatchNormAct2d and fused[8].act == "identity"
    assert stock_keys(fused)["9.weight"] == "9.0.weight" and stock_keys(fused)["1.weight"] == "1.weight"
    assert set(stock_keys(fused).values()) == set(model.state_dict())
    stock = to_stock(fused)
    stock.load_state_dict(model.state_dict(), strict=True)
    assert repr(stock) == repr(model)
    if training:
        fused[9].p = model[9][2].p = 0.0
    x = torch.randn(3, 4, 6, 6)
    expected = step(model, x)
    torch.testing.assert_close(step(fused, x), expected)


def test_neighbours_that_stay_apart():
    def kinds(*layers: nn.Module, change: Any = lambda m: None) -> list[type]:
        model = nn.Sequential(*layers, nn.Flatten())
        change(model)
        return [type(module) for module in to_fused(model)][:2]

    apart = [ftnn.BatchNormAct2d, ftnn.ReLU]
    norm, relu = nn.BatchNorm2d(4), nn.ReLU()
    assert kinds(norm, relu) == [ftnn.BatchNormReLU2d, nn.Identity]
    assert kinds(norm, relu, change=lambda m: m[0].eval()) == apart
    assert kinds(norm.train(), relu, change=lambda m: m[1].register_forward_hook(print)) == apart
    assert kinds(norm, nn.ReLU(), nn.Sequential(norm)) == apart

    class Holds(nn.Module):
        def __init__(self, also_calls: bool) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
            self.norms = nn.ModuleList([] if also_calls else [self.layers[0]])
            self.also_calls = also_calls

        def forward(self, x: Tensor) -> Any:
            y = self.layers(x)
            return (y, self.layers[0](x)) if self.also_calls else y

    for also_calls in (False, True):
        assert [type(module) for module in to_fused(Holds(also_calls)).layers][:2] == apart

    class Taps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())

        def forward(self, x: Tensor) -> list[Tensor]:
            results = []
            for layer in self.layers:
                x = layer(x)
                results.append(x)
            return results

    assert [type(module) for module in to_fused(Taps()).layers][:2] == apart


class Layers(nn.Module):
    """Runs its layers; what classes derived from it do with them besides decides whether they may be joined."""

    def __init__(self, deep: bool = False) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), *([nn.Flatten()] if deep else []))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Indexes(Layers):
    def scale(self) -> Any:
        return self.layers[0].weight


class Measures(Layers):
    @property
    def depth(self) -> int:
        return len(self.layers)


class Gets(Layers):
    def first(self) -> Any:
        return getattr(self, "layers")[0]  # noqa: B009


class TapsInside(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> list[Tensor]:
        results = []
        with torch.no_grad():
            for layer in self.net.layers.children():
                x = layer(x)
                results.append(x)
                if len(results) == 9:
                    break
        return results


class TriesFirst(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Any:
        try:
            return self.net(x)
        except ValueError:
            return list(next(self.children()).children())


@pytest.mark.parametrize("deep", [False, True])
def test_containers_that_code_looks_into_stay(deep):
    def joins(model: nn.Module) -> bool:
        return "BatchNormReLU2d" in ours_in(to_fused(model))

    assert joins(Layers(deep)) and joins(nn.Sequential(Layers(deep)))
    for model in (Indexes(deep), Measures(deep), Gets(deep), TapsInside(Layers(deep)), TriesFirst(Layers(deep))):
        assert not joins(model)
    space: dict[str, Any] = {"Layers": Layers}
    exec("class Hidden(Layers):\n def look(self): return self.layers[0]", space)
    assert not joins(space["Hidden"](deep))  # whose source cannot be read


def test_identities_that_code_looks_into_stay():
    class Sees(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(ftnn.BatchNormReLU2d(4), nn.Identity(), nn.Flatten())

        def forward(self, x: Tensor) -> list[Tensor]:
            return [self.layers[:1](x), self.layers(x)]

    x = torch.randn(2, 4, 3, 3)
    model = Sees().eval()
    torch.testing.assert_close(to_stock(model)(x), model(x))


class SometimesAdds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = ftnn.BatchNormReLU2d(4)
        self.keywords = ftnn.BatchNormReLU2d(4)
        self.toggled = ftnn.BatchNormReLU2d(4)
        self.elsewhere = ftnn.BatchNormReLU2d(4)
        self.hooked = ftnn.BatchNormReLU2d(4)
        self.hooked.register_forward_pre_hook(lambda module, args: (args[0], args[0]))
        self.adds = False

    def forward(self, x: Tensor, skip: Tensor | None = None, **more: Any) -> Any:
        x = self.hooked(self.keywords(x, **more))
        x = self.toggled(x, x) if self.adds else self.toggled(x)
        if skip is None:
            return self.norm(x)
        return self.norm(x, skip)

    def another(self, x: Tensor) -> Any:
        return self.elsewhere(x, x)


def test_residuals_that_may_be_passed():
    model, x = given(SometimesAdds()).eval(), torch.randn(2, 4, 3, 3)
    stock = to_stock(model)
    model.adds = stock.adds = True
    for arguments in ((x,), (x, x)):
        torch.testing.assert_close(stock(*arguments, residual=x), model(*arguments, residual=x))
    torch.testing.assert_close(stock.another(x), model.another(x))


def test_marks_of_libraries_are_ignored():
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    torch.jit.script(model)
    for module in model:
        module._is_hf_initialized = True
    fused = to_fused(model)
    assert type(fused[1]) is ftnn.BatchNormReLU2d
    torch.jit.script(fused)
    assert stock_keys(fused)["1.weight"] == "1.weight"


def test_the_first_place_keeps_its_object():
    model = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Dropout(0.1), nn.Flatten())
    objects = [*model]
    to_fused(model, inplace=True)
    assert ours_in(model) == ["BatchNormReLU2d", "LinearActDropout"]
    assert model[0] is objects[0] and model[2] is objects[2]
    to_stock(model, inplace=True)
    assert type(model[0]) is nn.BatchNorm2d and model[0] is objects[0] and model[2] is objects[2]
    norm = nn.BatchNorm2d(4)
    whole = to_fused(nn.Sequential(norm, nn.ReLU()), inplace=True)
    assert norm.weight is whole.weight and norm._buffers is whole._buffers  # for who holds the layer otherwise
    unfolded = nn.Sequential(
        ftnn.ActDropout("leaky_relu", 0.2, act_kwargs={"negative_slope": 0.3}), nn.Identity(), norm
    )
    first = unfolded[0]
    to_stock(unfolded, inplace=True)
    assert unfolded[0] is first and repr(first) == repr(nn.LeakyReLU(0.3)) and type(unfolded[1]) is nn.Dropout


def test_scripted_children_are_leaves():
    x = torch.randn(2, 4, 3, 3)
    inner = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())
    for child in (torch.jit.trace(inner, x), torch.jit.script(inner)):
        model = nn.Sequential(child, ftnn.BatchNormReLU2d(4), nn.BatchNorm2d(4), nn.ReLU()).eval()
        for function in (fusedtricks.fuse, to_fused, to_stock):
            torch.testing.assert_close(function(model)(x), model(x))


def test_modules_that_contain_each_other():
    class Child(nn.Module):
        def __init__(self, parent: nn.Module) -> None:
            super().__init__()
            self.parent = parent
            self.norm = ftnn.BatchNormReLU2d(4)

        def forward(self, x: Tensor) -> Any:
            return self.norm(x)

    class Parent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.child = Child(self)
            self.act = nn.ReLU()

        def forward(self, x: Tensor) -> Any:
            return self.act(self.child(x))

    model, x = Parent(), torch.randn(2, 4, 3, 3)
    for function in (to_stock, to_fused):
        torch.testing.assert_close(function(model)(x), model(x))


def test_results_that_are_changed_in_place():
    class Adds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(6, 6), nn.ELU())

        def forward(self, x: Tensor) -> Tensor:
            y = self.layers(x)
            y += x
            return y

    fused = to_fused(Adds())
    assert type(fused.layers[1]) is nn.ELU
    torch.testing.assert_close(step(fused, torch.ones(2, 6)), step(to_stock(fused), torch.ones(2, 6)))


def test_models_of_fuse():
    model = given(ResNet()).eval()
    x = torch.randn(2, 4, 16, 16)
    fused = fusedtricks.fuse(model)
    stock = to_stock(fused)
    assert [type(module) for module in stock.modules()] == [type(module) for module in model.modules()]
    assert fusedtricks.report(fused).chains and stock_keys(fused) == {name: name for name in model.state_dict()}
    torch.testing.assert_close(stock(x), model(x))
    ours = to_fused(fused)
    assert ours_in(ours)
    torch.testing.assert_close(ours(x), model(x))


def test_results_of_unread_code_may_be_changed():
    class Tries(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ELU()
            self.layers = nn.Sequential(nn.ELU())

        def forward(self, x: Tensor) -> Any:
            try:
                y, z = self.act(x), self.layers(x)
            except ValueError:
                raise
            return y.add_(1) + z.add_(1)

    fused = to_fused(Tries())
    assert not ours_in(fused)
    step(fused, torch.ones(2, 6))

    class Loops(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(6, 6), nn.ELU(), nn.Dropout(0.0))

        def forward(self, x: Tensor) -> Any:
            for layer in (self.layers,):
                y = layer(x)
            y += 1
            return y

    step(to_fused(Loops()).eval(), torch.ones(2, 6))


# TorchScript


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("convert", [lambda m: m, to_stock], ids=["ours", "stock"])
@pytest.mark.parametrize("module", [m for m in (*SINGLES, *OTHERS) if not isinstance(m, nn.SyncBatchNorm)], ids=name_of)
def test_script(module, convert, training):
    module = given(copy.deepcopy(module)).train(training)
    no_drop(module)
    model = nn.Sequential(convert(copy.deepcopy(module)))
    kinds, keys = [type(m) for m in model.modules()], list(model.state_dict())
    compiled = torch.jit.script(model)
    assert list(compiled.state_dict()) == list(model.state_dict()) == keys
    x = sample(module)
    if "Fractional" in type(module).__name__ and module._random_samples is None:
        assert compiled(x).shape == module(x).shape
        return
    expected = step(nn.Sequential(copy.deepcopy(module)), x)
    torch.testing.assert_close(step(compiled, x), expected)
    torch.testing.assert_close(model(x), compiled(x))
    assert [type(m) for m in model.modules()] == kinds  # the model that was given is as it was


def test_script_of_residuals_and_whole_models():
    model = given(nn.Sequential(Block(), Block())).eval()
    x = sample(model)
    for made in (model, to_stock(model), copy.deepcopy(model)):
        compiled = torch.jit.script(made)
        assert not ours_in(to_stock(made))  # also before the next call
        torch.testing.assert_close(compiled(x), model(x))
    stock = given(ResNet()).eval()
    fused = fusedtricks.fuse(stock)
    kinds = [type(module) for module in fused.modules()]
    compiled, x = torch.jit.script(fused), torch.randn(2, 4, 16, 16)
    copied = copy.deepcopy(fused)
    torch.testing.assert_close([compiled(x), fused(x), copied(x)], [stock(x)] * 3)
    assert [type(module) for module in fused.modules()] == kinds
    for inplace in (False, True):
        torch.jit.script(fused)
        unfused = fusedtricks.unfuse(fused, inplace=inplace)
        assert [type(module) for module in unfused.modules()] == [type(module) for module in stock.modules()]


def test_script_again_with_other_settings():
    model = nn.Sequential(ftnn.BatchNormAct2d(4, act="leaky_relu", act_kwargs={"negative_slope": 0.1})).eval()
    torch.jit.script(model)
    model[0].act_kwargs = {"negative_slope": 0.9}
    x = sample(model)
    torch.testing.assert_close(torch.jit.script(model)(x), model(x))


def test_script_of_derived_classes():
    class Mine(ftnn.BatchNormReLU2d):
        pass

    model, x = nn.Sequential(Mine(4)).eval(), torch.randn(2, 4, 3, 3)
    expected = model(x)
    torch.testing.assert_close(torch.jit.script(model)(x), expected)
    torch.testing.assert_close(model(x), expected)
    assert type(model[0]) is Mine


def test_after_script():
    class Calls(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = ftnn.BatchNormReLU2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm.forward(x)

    model, x = Calls().eval(), torch.randn(2, 4, 3, 3)
    expected = model(x)
    torch.jit.script(model)
    torch.testing.assert_close(model(x), expected)  # does not call the module
    torch.jit.script(model)
    kind = type(model.norm)
    model.norm.__class__ = type("Sharded", (kind,), {})  # as FSDP does
    torch.testing.assert_close(model.norm(x), expected)
    model.norm.__class__ = kind
    nn.utils.parametrize.register_parametrization(model.norm, "weight", nn.Identity())
    torch.testing.assert_close(model.norm(x), expected)


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_plain_activations(act):
    x = torch.linspace(-5, 5, 31)
    torch.testing.assert_close(activate(x, act, [*ACTIVATIONS[act].values(), 0.0]), activation(x, act))


# Tools that read layers


def test_folding():
    model = given(nn.Sequential(nn.Conv2d(4, 4, 3), ftnn.BatchNormReLU2d(4), nn.Identity(), ftnn.Tanh())).eval()
    x = sample(model)
    stock = to_stock(model)
    folded = nn.Sequential(fuse_conv_bn_eval(stock[0], stock[1]), *stock[2:])
    torch.testing.assert_close(folded(x), model(x))
    by_graph = fuse_graph(stock)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in by_graph.modules())
    torch.testing.assert_close(by_graph(x), model(x))
    torch.testing.assert_close(fuse_graph(model)(x), model(x))  # leaves ours alone


def test_quantisation():
    model = given(nn.Sequential(nn.Conv2d(4, 4, 3), ftnn.BatchNormReLU2d(4), nn.Identity())).eval()
    with pytest.raises((AssertionError, NotImplementedError)):
        torch.ao.quantization.fuse_modules(model, [["0", "1"]])
    fused = torch.ao.quantization.fuse_modules(to_stock(model), [["0", "1"]])
    torch.testing.assert_close(fused(sample(model)), model(sample(model)))


class Frozen(nn.Module):
    """As detectors freeze a BatchNorm."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, getattr(norm, name).data.clone())
        self.eps = norm.eps

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


def test_freezing():
    def freeze(module: nn.Module) -> nn.Module:
        if isinstance(module, nn.BatchNorm2d):
            return Frozen(module)
        for name, child in module.named_children():
            setattr(module, name, freeze(child))
        return module

    model = given(nn.Sequential(Block(), ftnn.BatchNormActMaxPool2d(4, 2))).eval()
    torch.testing.assert_close(freeze(to_stock(model))(sample(model)), model(sample(model)))
