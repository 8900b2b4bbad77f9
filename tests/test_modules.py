"""The modules compared with the stock ones they replace: arguments, state, and whole training runs."""

from __future__ import annotations

import inspect

import pytest
import torch
from cases import stock_module
from torch import nn

import fusedtricks.nn as ftnn

ACTIVATION_MODULES = {
    "ReLU": [{}, {"inplace": True}],
    "ReLU6": [{}, {"inplace": True}],
    "LeakyReLU": [{}, {"negative_slope": 0.2}, {"negative_slope": 0.2, "inplace": True}],
    "ELU": [{}, {"alpha": 0.7}, {"alpha": 0.7, "inplace": True}],
    "SELU": [{}, {"inplace": True}],
    "GELU": [{}, {"approximate": "tanh"}],
    "Sigmoid": [{}],
    "Tanh": [{}],
    "SiLU": [{}, {"inplace": True}],
    "Mish": [{}, {"inplace": True}],
    "Hardswish": [{}, {"inplace": True}],
    "Hardsigmoid": [{}, {"inplace": True}],
    "Softplus": [{}, {"beta": 2.0, "threshold": 3.0}],
}
ACTIVATION_CALLS = [(name, kwargs) for name, calls in ACTIVATION_MODULES.items() for kwargs in calls]

RANKS = {"1d": (8, 5, 13), "2d": (4, 5, 6, 7), "3d": (2, 5, 3, 4, 6)}
BATCH_NORM_ARGUMENTS = [
    {},
    {"eps": 1e-3, "momentum": 0.3},
    {"momentum": None},
    {"affine": False},
    {"track_running_stats": False},
    {"affine": False, "track_running_stats": False},
    # An argument of torch 2.13's BatchNorm.
    *([{"bias": False}] if "bias" in inspect.signature(nn.BatchNorm2d).parameters else []),
]


def batch_norms(rank: str, act="identity", act_kwargs=None, **kwargs) -> tuple[nn.Module, nn.Module]:
    """A stock module (without activation) and a fused one with the same state."""
    stock = getattr(nn, f"BatchNorm{rank}")(5, **kwargs)
    fused = getattr(ftnn, f"BatchNormAct{rank}")(5, act=act, act_kwargs=act_kwargs, **kwargs)
    if stock.weight is not None:
        nn.init.normal_(stock.weight, 1, 0.2)
    if stock.bias is not None:
        nn.init.normal_(stock.bias)
    fused.load_state_dict(stock.state_dict())
    return stock, fused


def step(model: nn.Module, x: torch.Tensor, dy: torch.Tensor) -> list[torch.Tensor]:
    """Output and gradients of input and parameters."""
    x = x.detach().requires_grad_()
    y = model(x)
    return [y, *torch.autograd.grad(y, [x, *model.parameters()], dy)]


@pytest.mark.parametrize("kwargs", BATCH_NORM_ARGUMENTS, ids=str)
@pytest.mark.parametrize("rank", RANKS)
def test_batch_norm_trains_and_evaluates_as_stock(rank, kwargs, device):
    stock, fused = (m.to(device) for m in batch_norms(rank, **kwargs))
    for _ in range(3):
        x, dy = (torch.randn(RANKS[rank], device=device) for _ in range(2))
        torch.testing.assert_close(step(fused, x, dy), step(stock, x, dy))
    torch.testing.assert_close(fused.state_dict(), stock.state_dict())
    stock.eval(), fused.eval()
    torch.testing.assert_close(step(fused, x, dy), step(stock, x, dy))
    torch.testing.assert_close(fused.state_dict(), stock.state_dict())


@pytest.mark.parametrize("rank", RANKS)
def test_batch_norm_is_a_stock_batch_norm_by_type_and_signature(rank):
    stock, fused = getattr(nn, f"BatchNorm{rank}"), getattr(ftnn, f"BatchNormAct{rank}")
    assert issubclass(fused, stock)
    ours, theirs = (inspect.signature(cls).parameters for cls in (fused, stock))
    positional = [name for name, p in theirs.items() if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    assert list(ours)[: len(positional)] == positional
    assert {name: ours[name].default for name in theirs} == {name: p.default for name, p in theirs.items()}
    assert ours["act"].default == "relu" and ours["act"].kind is inspect.Parameter.KEYWORD_ONLY
    assert fused(5).state_dict().keys() == stock(5).state_dict().keys()


@pytest.mark.parametrize("rank", RANKS)
def test_batch_norm_act_with_residual(rank, device):
    options = {"act": "leaky_relu", "act_kwargs": {"negative_slope": 0.2}}
    stock, fused = (m.to(device) for m in batch_norms(rank, **options))
    x, residual = (torch.randn(RANKS[rank], device=device) for _ in range(2))
    torch.testing.assert_close(fused(x, residual), nn.functional.leaky_relu(stock(x) + residual, 0.2))
    torch.testing.assert_close(fused(x, residual=residual), nn.functional.leaky_relu(stock(x) + residual, 0.2))


@pytest.mark.parametrize("rank", RANKS)
def test_batch_norm_relu_is_the_shorthand(rank, device):
    stock, _ = batch_norms(rank)
    fused = getattr(ftnn, f"BatchNormReLU{rank}")(5)
    fused.load_state_dict(stock.state_dict())
    x = torch.randn(RANKS[rank], device=device)
    torch.testing.assert_close(fused.to(device)(x), stock.to(device)(x).relu())


@pytest.mark.parametrize(
    ("act", "act_kwargs"), [("silu", {}), ("leaky_relu", {"negative_slope": 0.2}), ("gelu_tanh", {})]
)
def test_batch_norm_takes_any_activation(act, act_kwargs, device):
    fused = ftnn.BatchNormAct2d(5, act=act, act_kwargs=act_kwargs or None, device=device)
    x = torch.randn(RANKS["2d"], device=device)
    torch.testing.assert_close(fused(x), stock_module(act, act_kwargs)(nn.BatchNorm2d(5, device=device)(x)))


def test_batch_norm_repr_names_arguments_and_activation():
    text = repr(ftnn.BatchNormAct2d(5, eps=1e-3, act="leaky_relu", act_kwargs={"negative_slope": 0.2}))
    for part in (
        "BatchNormAct2d",
        "5",
        "eps=0.001",
        "momentum=0.1",
        "affine=True",
        "leaky_relu",
        "negative_slope",
        "0.2",
    ):
        assert part in text, text


def test_batch_norm_1d_takes_a_matrix(device):
    x = torch.randn(7, 5, device=device)
    torch.testing.assert_close(ftnn.BatchNormReLU1d(5).to(device)(x), nn.BatchNorm1d(5).to(device)(x).relu())


@pytest.mark.parametrize("shape", [(0, 5), (0, 5, 4)])
def test_batch_norm_counts_an_empty_batch_as_stock_does(shape, device):
    stock, fused = (m.to(device) for m in batch_norms("1d"))
    x = torch.randn(shape, device=device)
    assert fused(x).shape == stock(x).shape
    torch.testing.assert_close(fused.state_dict(), stock.state_dict())


@pytest.mark.parametrize("direction", ["stock_to_fused", "fused_to_stock"])
def test_state_dict_from_and_to_stock(direction):
    source, target = nn.BatchNorm2d(5), ftnn.BatchNormAct2d(5)
    if direction == "fused_to_stock":
        source, target = target, source
    source(torch.randn(RANKS["2d"]))
    target.load_state_dict(source.state_dict(), strict=True)
    torch.testing.assert_close(target.state_dict(), source.state_dict())


def test_state_dict_of_version_1_has_no_batch_count():
    """Checkpoints from before torch 0.4.1: stock adds the count, and so do its subclasses."""
    state = nn.BatchNorm2d(5).state_dict()
    del state["num_batches_tracked"]
    state._metadata[""]["version"] = 1
    fused = ftnn.BatchNormAct2d(5)
    fused(torch.randn(RANKS["2d"]))
    fused.load_state_dict(state, strict=True)
    torch.testing.assert_close(fused.running_mean, torch.zeros(5))


@pytest.mark.parametrize(("name", "kwargs"), ACTIVATION_CALLS, ids=str)
def test_activation_module_is_the_stock_one_but_faster(name, kwargs, device):
    """A subclass with the same arguments, repr and values, in training and in place."""
    stock, fused = getattr(nn, name)(**kwargs), getattr(ftnn, name)(**kwargs)
    assert isinstance(fused, getattr(nn, name))
    assert repr(fused) == repr(stock)
    assert inspect.signature(type(fused)) == inspect.signature(type(stock))
    assert fused.state_dict() == {}
    x, dy = (torch.randn(3, 5, 7, device=device) for _ in range(2))
    before, after = nn.Sequential(nn.Identity(), stock), nn.Sequential(nn.Identity(), fused)
    for model in (before, after):
        model[0].forward = lambda x: x * 1  # an in-place activation needs a non-leaf input
    torch.testing.assert_close(step(after, x, dy), step(before, x, dy))


def test_in_place_modules_write_over_their_input(device):
    for name, kwargs in ACTIVATION_CALLS:
        if "inplace" in kwargs:
            x = torch.randn(33, device=device)
            assert getattr(ftnn, name)(**kwargs)(x) is x, name


def test_dropout_module(device):
    fused = ftnn.Dropout(0.3)
    assert isinstance(fused, nn.Dropout) and repr(nn.Dropout(0.3)).rstrip(")") in repr(fused)
    assert ftnn.Dropout().p == 0.5 and fused.state_dict() == {}
    x = torch.ones(100_000, device=device)
    y = fused(x)
    assert y.max().item() == pytest.approx(1 / 0.7)
    # 5 standard deviations of the kept fraction, sqrt(0.3 * 0.7 / 100000)
    assert (y != 0).float().mean().item() == pytest.approx(0.7, abs=5 * 0.00145)
    assert torch.equal(fused.eval()(x), x)


def test_dropout_module_in_place(device):
    x = torch.ones(1000, device=device)
    assert ftnn.Dropout(0.3, inplace=True)(x) is x and not x.all()


def test_dropout_module_classic(device):
    fused = ftnn.Dropout(0.3, mode="classic")
    assert "classic" in repr(fused)
    x = torch.ones(1000, device=device)
    assert set(fused(x).tolist()) == {0.0, 1.0}
    torch.testing.assert_close(fused.eval()(x), 0.7 * x)


def residual_network(fused: bool) -> nn.Module:
    """Convolutions, BatchNorm with and without a residual, a linear end; no dropout, whose masks are not stock's."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
            self.bn1 = ftnn.BatchNormReLU2d(8) if fused else nn.BatchNorm2d(8)
            self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
            self.bn2 = ftnn.BatchNormAct2d(8, act="silu") if fused else nn.BatchNorm2d(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if fused:
                return self.bn2(self.conv2(self.bn1(self.conv1(x))), x)
            return nn.functional.silu(self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())) + x)

    layers = ftnn if fused else nn
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        layers.LeakyReLU(0.1, inplace=True),
        Block(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 16),
        layers.GELU(),
        nn.Linear(16, 4),
    )


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_training_a_network_equals_stock(memory_format, device):
    """In float64: in fp32, a rounding that moves one pre-activation across a kink changes all later steps."""
    stock, fused = residual_network(False), residual_network(True)
    assert stock.state_dict().keys() == fused.state_dict().keys()
    fused.load_state_dict(stock.state_dict())
    x = torch.randn(16, 3, 12, 12, device=device, dtype=torch.float64).contiguous(memory_format=memory_format)
    target = torch.randint(4, (16,), device=device)
    losses = []
    for model in (stock, fused):
        model.to(device, torch.float64, memory_format=memory_format).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        losses.append([])
        for _ in range(30):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), target)
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0][-1] < 0.5 * losses[0][0]
    # Thirty steps amplify a perturbation of 1e-16 ten-thousandfold.
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(fused.state_dict(), stock.state_dict(), rtol=1e-9, atol=1e-10)
