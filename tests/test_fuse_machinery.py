"""Fused models with PyTorch's machinery: copies, hooks, later changes, autocast, compilers, data parallelism."""

from __future__ import annotations

import copy
import io
import pickle

import fuse_models
import pytest
import torch
from fuse_case import STEPS, assert_same_training, chains, image, train
from fuse_models import BasicBlock, ListOrTensor, NestedSequential, Options, ResNet
from torch import Tensor, nn

import fusedtricks
import fusedtricks.nn as ftnn


def through_pickle(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def through_torch(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle, through_torch])
def test_copies_stay_fused(copied, calls):
    stock = ResNet().double()
    fused = copied(fusedtricks.fuse(stock))
    assert chains(fused) == 5
    assert_same_training(fused, stock)
    assert calls.count("+ relu") == 2 * (STEPS + 2)
    assert type(fusedtricks.unfuse(copied(fused))) is ResNet


class Configuration:
    scale = 2.0


class Configured(BasicBlock):
    """Reads an object that is copied with the module."""

    def __init__(self) -> None:
        super().__init__()
        self.config = Configuration()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.config.scale


@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle])
def test_copies_with_a_configuration_stay_fused(copied, calls):
    stock = Configured().double()
    fused = copied(fusedtricks.fuse(stock))
    assert_same_training(fused, stock)
    assert calls.count("+ relu") == STEPS + 2
    calls.clear()
    stock.config, fused.config = Configuration(), Configuration()
    assert_same_training(fused, stock)
    assert calls.count("+ relu") == STEPS + 2
    calls.clear()
    stock.config.scale = fused.config.scale = 3.0
    assert_same_training(fused, stock)
    assert not calls.count("+ relu")


def test_copies_do_not_share_modules():
    fused = fusedtricks.fuse(ResNet().double())
    twin = copy.deepcopy(fused)
    expected = twin.eval()(image())
    for parameter in fused.parameters():
        parameter.data.fill_(torch.nan)
    assert expected.isfinite().all() and twin(image()).isfinite().all()


def test_replicas_use_their_own_modules(calls):
    """As DataParallel does: shallow copies whose parameters are plain tensors."""
    block = fusedtricks.fuse(BasicBlock().double())
    replica = block._replicate_for_data_parallel()
    for name, child in block.named_children():
        twin = child._replicate_for_data_parallel()
        for key, parameter in child.named_parameters():
            setattr(twin, key, parameter.detach() * 2)
        for key, buffer in child.named_buffers():
            setattr(twin, key, buffer.clone())
        setattr(replica, name, twin)
    expected = BasicBlock().double()
    expected.load_state_dict(block.state_dict())
    for parameter in expected.parameters():
        parameter.data.mul_(2)
    x = image()
    torch.testing.assert_close(replica(x), expected(x))
    assert calls == ["relu", "+ relu"]


def test_frozen_layers_and_requires_grad():
    """A BatchNorm in evaluation mode within a model in training, and one with frozen parameters."""
    stock = ResNet().double()
    stock.layers[0].bn1.eval().requires_grad_(False)
    stock.stem[1].requires_grad_(False)
    fused = fusedtricks.fuse(stock)
    assert [p.requires_grad for p in fused.parameters()] == [p.requires_grad for p in stock.parameters()]
    assert not fused.layers[0].bn1.training and fused.layers[0].training
    assert_same_training(fused, stock)
    stock.layers[1].bn2.eval()
    fused.layers[1].bn2.eval()
    assert_same_training(fused, stock)


def test_hooks_are_honoured(calls):
    """Chains and blocks with a hook on a member run unfused, whenever the hook was added."""
    stock = ResNet().double()
    seen: dict[str, list[Tensor]] = {"stock": [], "fused": []}
    before = fusedtricks.fuse(stock)
    for name, model in (("stock", stock), ("fused", before)):
        model.stem[1].register_forward_hook(lambda m, x, y, name=name: seen[name].append(y.detach().clone()))
        model.layers[0].relu.register_forward_pre_hook(lambda m, x, name=name: seen[name].append(x[0].detach().clone()))
        model.layers[1].register_forward_hook(lambda m, x, y: y * 2)
    assert_same_training(before, stock)
    torch.testing.assert_close(seen["fused"], seen["stock"])
    assert len(seen["stock"]) == 3 * (STEPS + 2)
    calls.clear()
    before(image())
    assert calls.count("+ relu") == 1  # in layers[1]; layers[0] runs its own members


def test_hooks_on_modules_within_a_plan():
    """A module that was inlined into its caller's graph is called again once it has a hook."""
    fused = fusedtricks.fuse(fuse_models.AcrossModules().double())
    seen = []
    fused.layer[1].register_forward_hook(lambda m, x, y: seen.append(y))
    fused(image())
    assert len(seen) == 1


def test_global_hooks_are_honoured():
    fused = fusedtricks.fuse(BasicBlock().double())
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, x, y: seen.append(type(m).__name__))
    try:
        fused(image())
    finally:
        handle.remove()
    assert seen.count("BatchNorm2d") == 2 and seen.count("ReLU") == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m, "relu", nn.LeakyReLU(0.3)),
        lambda m: setattr(m, "relu", nn.Softshrink(0.3)),
        lambda m: setattr(m, "downsample", nn.Conv2d(4, 4, 1).double()),
        lambda m: setattr(m, "bn1", nn.GroupNorm(2, 4).double()),
        lambda m: setattr(m, "bn2", nn.Identity()),
        lambda m: torch.nn.utils.parametrize.register_parametrization(m.bn1, "weight", nn.Softplus()),
        lambda m: setattr(m.bn1, "momentum", None),
        lambda m: setattr(m, "conv2", nn.utils.spectral_norm(m.conv2)),
    ],
)
def test_changes_after_fusing(change):
    stock = BasicBlock().double()
    fused = fusedtricks.fuse(stock)
    for model in (stock, fused):
        torch.manual_seed(1)
        change(model)
    assert_same_training(fused, stock)


def test_arguments_with_defaults(calls):
    """Values other than those in the graph run the user's forward."""
    stock = Options().double()
    fused = fusedtricks.fuse(stock)
    x, residual = image(), image()
    for arguments, keywords in [
        ((x,), {}),
        ((), {"x": x}),
        ((x, None), {"double": False}),
        ((x, residual), {}),
        ((x,), {"scale": 0.5, "double": True}),
    ]:
        torch.testing.assert_close(fused(*arguments, **keywords), stock(*arguments, **keywords))
    assert len(calls) == 3 * 2 + 2 * 2  # standalone BatchNorms are ours in the user's forward too
    assert calls[-2:] == ["identity", "identity"]
    with pytest.raises(TypeError, match="unexpected keyword argument 'other'"):
        fused(x, other=1)
    torch.testing.assert_close(
        fusedtricks.fuse(ListOrTensor().double())([x[:, :2], x[:, 2:]]).shape, torch.Size([3, 4, 8, 7])
    )


def test_weights_shared_between_norms():
    stock = NestedSequential().double()
    stock[2].weight = stock[0][1][0].weight
    fused = fusedtricks.fuse(stock)
    assert fused[2].weight is fused[0][1][0].weight
    assert_same_training(fused, stock)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision(dtype):
    stock = ResNet().to(dtype)
    fused = fusedtricks.fuse(stock)
    x = image().to(dtype)
    expected = copy.deepcopy(stock).double()(x.double())
    error = (stock(x).double() - expected).abs().max()
    assert (fused(x).double() - expected).abs().max() <= 2 * error + 1e-6


def test_autocast():
    stock = ResNet()
    fused = fusedtricks.fuse(stock)
    x = image().float()
    with torch.autocast("cpu", torch.bfloat16):
        actual, expected = fused(x), stock(x)
    assert actual.dtype is expected.dtype
    torch.testing.assert_close(actual, expected, rtol=0.05, atol=0.05)


def test_activations_and_dropout_are_optional():
    class Singles(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Linear(4, 4), nn.LeakyReLU(), nn.Linear(4, 4), nn.Dropout2d(0.5), nn.BatchNorm1d(4))

    names = [
        [e.what for e in fusedtricks.report(fusedtricks.fuse(Singles(), **options)).singles]
        for options in ({}, {"dropout": False}, {"activations": False}, {"activations": False, "dropout": False})
    ]
    everything = ["LeakyReLU", "Dropout2d", "BatchNorm1d"]
    assert names == [everything, ["LeakyReLU", "BatchNorm1d"], ["Dropout2d", "BatchNorm1d"], ["BatchNorm1d"]]


def test_dropout_drops():
    fused = fusedtricks.fuse(nn.Sequential(nn.Dropout(0.25)))
    x = torch.ones(1000, 100)
    assert fused(x).eq(0).double().mean().sub(0.25).abs() < 0.01
    assert fused.eval()(x) is x


def test_compile_a_fused_model():
    """Dynamo traces through the plans without graph breaks."""
    stock = ResNet().double()
    fused = fusedtricks.fuse(stock)
    torch._dynamo.reset()
    assert_same_training(torch.compile(fused, fullgraph=True, backend="aot_eager"), stock)


@pytest.mark.parametrize("fused", [True, False])
def test_torch_fx_traces_the_model(fused):
    """A user's own torch.fx trace of a fused model looks like the stock model's; our modules can be traced too."""
    model = (
        fusedtricks.fuse(ResNet().double()) if fused else nn.Sequential(ftnn.BatchNormReLU2d(4), ftnn.GELU()).double()
    )
    graph_module = torch.fx.symbolic_trace(model)
    if fused:
        kinds = [type(graph_module.get_submodule(n.target)) for n in graph_module.graph.nodes if n.op == "call_module"]
        assert sum(issubclass(kind, nn.BatchNorm2d) for kind in kinds) == 6
    x = image()
    torch.testing.assert_close(graph_module(x), model(x))


class EndsInAChain(nn.Module):
    def __init__(self, residual: bool) -> None:
        super().__init__()
        self.conv, self.bn, self.relu, self.residual = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        return self.relu(y + x if self.residual else y)


@pytest.mark.parametrize("residual", [False, True])
def test_checkpointing_a_fused_block(residual):
    """The checkpoint stops the second forward by an error, raised where the chain saves its last tensor."""
    stock = EndsInAChain(residual).double()
    fused = fusedtricks.fuse(stock)
    assert chains(fused) == 1

    def through(model: nn.Module, x: Tensor) -> Tensor:
        return torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False)

    assert_same_training(fused, stock, call=through)


def test_errors_within_a_chain_are_not_swallowed():
    fused = fusedtricks.fuse(EndsInAChain(False).double())

    def full(x: Tensor) -> Tensor:
        raise MemoryError("full")

    with pytest.raises(MemoryError), torch.autograd.graph.saved_tensors_hooks(full, lambda x: x):
        fused(image())
    assert fused.bn.num_batches_tracked <= 1


def test_distributed_data_parallel(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        stock = ResNet().double()
        wrapped = nn.parallel.DistributedDataParallel(fusedtricks.fuse(stock))
        inside = fusedtricks.fuse(nn.parallel.DistributedDataParallel(copy.deepcopy(stock)), inplace=True)
        assert chains(inside) == 5
        inputs = [image() for _ in range(STEPS)]
        expected = train(stock, inputs)
        torch.testing.assert_close(train(wrapped, inputs), expected)
        torch.testing.assert_close(train(inside, inputs), expected)
    finally:
        torch.distributed.destroy_process_group()


def test_data_parallel():
    stock = ResNet().double()
    assert_same_training(nn.DataParallel(fusedtricks.fuse(stock)), stock)
    fused = fusedtricks.fuse(nn.DataParallel(stock))
    assert chains(fused) == 5
    assert_same_training(fused, copy.deepcopy(stock))
