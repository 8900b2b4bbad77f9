"""PyTorch's machinery around a module: autocast, copies, casts, meta, checkpoints, DDP, changes in between."""

from __future__ import annotations

import copy
import io
import pickle
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cases import channels_last
from network import Network
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fusedtricks.nn as ftnn
from fusedtricks.functional import act_dropout, batch_norm_act, dropout, leaky_relu


def test_autocast(device):
    """A convolution in bf16 and a BatchNorm with float32 parameters: dtype and values as in stock."""
    conv, bn = nn.Conv2d(3, 8, 3, device=device), nn.BatchNorm2d(8, device=device)
    fused = ftnn.BatchNormReLU2d(8, device=device)
    fused.load_state_dict(bn.state_dict())
    x = torch.randn(4, 3, 9, 9, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        h = conv(x)
        expected, actual = bn(h).relu(), fused(h)
    assert actual.dtype is expected.dtype is torch.bfloat16
    # One rounding in ours, several in stock: two units in the last place of bf16.
    torch.testing.assert_close(actual, expected, rtol=2**-7, atol=2**-7)
    torch.testing.assert_close(fused.running_var, bn.running_var)
    actual.sum().backward()
    assert fused.weight.grad.dtype is torch.float32


@pytest.mark.parametrize(
    ("dtype", "residual_dtype"), [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)]
)
def test_autocast_promotes_a_residual_of_another_dtype(dtype, residual_dtype, device):
    """The sum of a bf16 branch and a float32 skip connection is float32, as in stock."""
    x, residual = torch.randn(4, 8, 5, 5, device=device).to(dtype), torch.randn(4, 8, 5, 5, device=device)
    residual = residual.to(residual_dtype).requires_grad_()
    bn, fused = nn.BatchNorm2d(8, device=device), ftnn.BatchNormReLU2d(8, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        expected, actual = (bn(x) + residual).relu(), fused(x, residual)
    assert actual.dtype is expected.dtype
    # Stock rounds the branch to bf16 before adding.
    torch.testing.assert_close(actual, expected, rtol=2**-7, atol=2**-6)
    (grad,) = torch.autograd.grad(actual.sum(), residual)
    assert grad.dtype is residual_dtype


def model_of_everything(device: torch.device) -> nn.Sequential:
    model = nn.Sequential(
        ftnn.BatchNormAct2d(4, act="leaky_relu", act_kwargs={"negative_slope": 0.3}, momentum=0.2),
        ftnn.LeakyReLU(0.2),
        ftnn.Dropout(0.25, mode="classic"),
        ftnn.BatchNormReLU2d(4, p=0.25),
        ftnn.Softplus(2, 3),
    ).to(device)
    model(torch.randn(3, 4, 5, 6, device=device))
    return model


def through_torch_save(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), through_torch_save],
    ids=["deepcopy", "pickle", "torch.save"],
)
def test_copies(duplicate, device):
    model = model_of_everything(device)
    twin = duplicate(model)
    assert repr(twin) == repr(model)
    torch.testing.assert_close(twin.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert not {p.data_ptr() for p in twin.parameters()} & {p.data_ptr() for p in model.parameters()}
    x = torch.randn(3, 4, 5, 6, device=device)
    for _ in range(2):
        results = []
        for m in (model, twin):
            torch.manual_seed(2)
            results.append(m(x))
        assert torch.equal(*results)
        model.eval(), twin.eval()


def test_meta_construction_and_to_empty(device):
    source = model_of_everything(device)
    with torch.device("meta"):
        model = nn.Sequential(
            ftnn.BatchNormAct2d(4, act="leaky_relu", act_kwargs={"negative_slope": 0.3}, momentum=0.2),
            ftnn.LeakyReLU(0.2),
            ftnn.Dropout(0.25, mode="classic"),
            ftnn.BatchNormReLU2d(4, p=0.25),
            ftnn.Softplus(2, 3),
        )
        y = model(channels_last(torch.empty(3, 4, 5, 6)))
    assert all(t.is_meta for t in model.state_dict().values())
    assert y.is_meta and y.shape == (3, 4, 5, 6) and y.is_contiguous(memory_format=torch.channels_last)
    model.to_empty(device=device).load_state_dict(source.state_dict())
    x = torch.randn(3, 4, 5, 6, device=device)
    assert torch.equal(model.eval()(x), source.eval()(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_cast_modules(dtype, device):
    """`.half()` and the like cast parameters and statistics, but not the batch count."""
    fused, bn = ftnn.BatchNormAct2d(4, act="identity").to(device, dtype), nn.BatchNorm2d(4).to(device, dtype)
    x = torch.randn(3, 4, 5, 6, device=device).to(dtype)
    y, expected = fused(x), bn(x)
    assert y.dtype is fused.weight.dtype is fused.running_var.dtype is dtype
    assert fused.num_batches_tracked.dtype is torch.int64 and fused.num_batches_tracked == 1
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(y, expected, rtol=4 * eps, atol=4 * eps)
    torch.testing.assert_close(fused.running_mean, bn.running_mean, rtol=2 * eps, atol=2 * eps)
    y.sum().backward()
    assert fused.weight.grad.dtype is dtype


def test_module_to_double_and_back(device):
    fused = ftnn.BatchNormReLU2d(4, device=device)
    state = copy.deepcopy(fused.state_dict())
    torch.testing.assert_close(fused.double().float().state_dict(), state, rtol=0, atol=0)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint(use_reentrant, device):
    """Same gradients as without; the recomputation also updates the statistics, as in stock."""
    model = Network().to(device)
    x = torch.randn(3, 4, 6, 5, device=device, requires_grad=True)
    plain = copy.deepcopy(model)
    leaves = [x, *plain.parameters()]
    expected = torch.autograd.grad(plain(x).square().sum(), leaves)
    checkpoint(model, x, use_reentrant=use_reentrant).square().sum().backward()
    torch.testing.assert_close([x.grad, *(p.grad for p in model.parameters())], list(expected))
    assert model.bn1.num_batches_tracked == 2


def test_distributed_data_parallel(device, monkeypatch):
    """One gloo process: hooks run, gradients arrive, buffers are broadcast."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = Network().to(device)
        parallel = nn.parallel.DistributedDataParallel(copy.deepcopy(model))
        x = torch.randn(3, 4, 6, 5, device=device)
        for _ in range(2):
            model.zero_grad(), parallel.zero_grad()
            model(x).square().sum().backward()
            parallel(x).square().sum().backward()
        for ours, theirs in zip(parallel.module.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad)
        torch.testing.assert_close(parallel.module.state_dict(), model.state_dict())
    finally:
        dist.destroy_process_group()


def test_inference_mode(device):
    """Inference tensors have no version counter; statistics and in-place results are still written."""
    model = model_of_everything(device)
    expected = copy.deepcopy(model)
    x = torch.randn(3, 4, 5, 6, device=device)
    for training in (True, False):
        model.train(training), expected.train(training)
        torch.manual_seed(2)
        with torch.inference_mode():
            y = model(x)
            z = leaky_relu(x * 1, 0.2, inplace=True)
        torch.manual_seed(2)
        assert torch.equal(y, expected(x)) and y.is_inference()
        assert torch.equal(z, nn.functional.leaky_relu(x, 0.2))
    torch.testing.assert_close(model.state_dict(), expected.state_dict(), rtol=0, atol=0)


def test_what_is_written_has_a_new_version(device):
    """Autograd's check for changed saved tensors notices writes to statistics and in-place results."""
    bn = ftnn.BatchNormReLU1d(3, device=device)
    before = [t._version for t in (bn.running_mean, bn.running_var, bn.num_batches_tracked)]
    bn(torch.randn(5, 3, device=device))
    after = [t._version for t in (bn.running_mean, bn.running_var, bn.num_batches_tracked)]
    assert all(a > b for a, b in zip(after, before, strict=True))
    with torch.no_grad():
        bn.eval()(torch.randn(5, 3, device=device))
    assert [t._version for t in (bn.running_mean, bn.running_var, bn.num_batches_tracked)] == after


def test_running_statistics_changed_twice_before_backward(device):
    """Two forwards, then both backwards: the statistics change in between, but backward does not need them."""
    bn = ftnn.BatchNormReLU1d(3, device=device)
    x = torch.randn(5, 3, device=device, requires_grad=True)
    (bn(x).sum() + bn(x * 2).sum()).backward()
    twin = nn.BatchNorm1d(3, device=device)
    z = x.detach().requires_grad_()
    (twin(z).relu().sum() + twin(z * 2).relu().sum()).backward()
    torch.testing.assert_close(x.grad, z.grad, rtol=1e-4, atol=1e-5)


def test_evaluation_statistics_changed_before_backward(device):
    """In evaluation they enter the gradient: changing them must raise an error or have no effect."""
    bn = ftnn.BatchNormAct1d(3, act="silu", device=device).eval()
    x = torch.randn(5, 3, device=device, requires_grad=True)
    (expected,) = torch.autograd.grad(bn(x).sum(), x)
    y = bn(x)
    bn.train()(torch.randn(5, 3, device=device) * 7)
    try:
        (dx,) = torch.autograd.grad(y.sum(), x)
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)
    else:
        torch.testing.assert_close(dx, expected)


def test_input_changed_before_backward_raises(device):
    x = torch.randn(5, 3, device=device, requires_grad=True)
    h = x * 1
    y = batch_norm_act(h, None, None, training=True)
    h.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_stock_op_in_place_on_the_result(device):
    """Allowed if only the input was kept, as in stock."""
    x = torch.randn(5, 3, device=device, requires_grad=True)
    y = batch_norm_act(x, None, None, act="identity", training=True)
    nn.functional.relu_(y)
    twin = x.detach().requires_grad_()
    expected = nn.functional.batch_norm(twin, None, None, training=True).relu()
    dy = torch.randn(5, 3, device=device)
    torch.testing.assert_close(torch.autograd.grad(y, x, dy), torch.autograd.grad(expected, twin, dy))


def module_of(kind: type[nn.Module]) -> nn.Module:
    """A module of ours for four channels or features."""
    arguments: dict[str, tuple[Any, ...]] = {
        "BatchNorm": (4,),
        "SyncBatchNorm": (4,),
        "Linear": (4, 4),
        "DropConnectLinear": (4, 4),
        "DropConnectConv": (4, 4, 1),
        "FractionalMaxPool": (2, 3),
        "StochasticDepth": (nn.Identity(),),
    }
    given = next((value for name, value in reversed(arguments.items()) if kind.__name__.startswith(name)), ())
    more = {"BatchNormActMaxPool2d": {"kernel_size": 2}, "SyncBatchNormActMaxPool2d": {"windows": {"kernel_size": 2}}}
    return kind(*given, **more.get(kind.__name__, {}))


@pytest.mark.parametrize("name", [name for name in ftnn.__all__ if isinstance(getattr(ftnn, name), type)])
def test_torch_fx_takes_our_modules_for_leaves(name):
    """In any tracer, so that the mode of the module counts when the graph runs, not when it was traced."""
    model = nn.Sequential(module_of(getattr(ftnn, name)))
    graph_module = torch.fx.symbolic_trace(model)
    (call,) = [node for node in graph_module.graph.nodes if node.op not in ("placeholder", "output")]
    assert (call.op, call.target) == ("call_module", "0")
    assert not graph_module.eval().get_submodule("0").training


def test_torch_fx_traces_residuals():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = ftnn.BatchNormReLU2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x, x)

    block = Block().double().eval()
    graph_module = torch.fx.symbolic_trace(block)
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(graph_module(x), block(x))
    block.train()
    torch.testing.assert_close(graph_module.train()(x), block(x))


@pytest.mark.parametrize("when", ["forward", "backward"])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_checkpoint_under_a_profiler_one_of_two_times(p, autocast, when, device):
    """What is kept must not depend on the modes that are on: checkpoint compares both times."""
    layer = ftnn.BatchNormAct2d(3, act="gelu", p=p).to(device)
    x = torch.randn(4, 3, 5, 5, device=device, requires_grad=True)
    profiled = {name: torch.profiler.profile() if name == when else nullcontext() for name in ("forward", "backward")}
    with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        with profiled["forward"]:
            y = checkpoint(layer, x, use_reentrant=False)
        with profiled["backward"]:
            y.sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


def test_inference_tensors_beside_trained_ones(device):
    """Features of a frozen network, added to a trained branch: where stock keeps nothing of them, a copy is kept."""
    with torch.inference_mode():
        features = torch.randn(4, 3, device=device)
    x, b = torch.randn(4, 3, device=device, requires_grad=True), torch.randn(3, device=device, requires_grad=True)
    for ours, stock, leaf in (
        (lambda: batch_norm_act(x, None, None, residual=features, act="silu", training=True), None, x),
        (lambda: act_dropout(features, b, act="gelu", training=False), lambda: nn.functional.gelu(features + b), b),
        (lambda: act_dropout(features, b, act="tanh", training=False), lambda: torch.tanh(features + b), b),
    ):
        (g,) = torch.autograd.grad(ours().square().sum(), leaf)
        stock = stock or (lambda: nn.functional.silu(nn.functional.batch_norm(x, None, None, training=True) + features))
        torch.testing.assert_close(g, torch.autograd.grad(stock().square().sum(), leaf)[0])


def test_sparse_gradients(device):
    """Of an embedding: they arrive as dense ones."""
    weight, index = torch.randn(6, 3, device=device, requires_grad=True), torch.tensor([1, 4], device=device)
    nn.functional.embedding(index, dropout(weight, 0.5, seed=1), sparse=True).sum().backward()
    assert weight.grad is not None
    expected = torch.autograd.grad(dropout(weight, 0.5, seed=1)[index].sum(), weight)[0]
    torch.testing.assert_close(weight.grad, expected)
