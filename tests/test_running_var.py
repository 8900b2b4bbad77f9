"""`running_var` of our BatchNorms: it works as a buffer does, and refuses to be used for the normalisation alone."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.optim import swa_utils

import fusedtricks.nn as ftnn

X = torch.arange(2 * 4 * 3 * 3, dtype=torch.float32).view(2, 4, 3, 3).sin()


def norm() -> ftnn.BatchNormReLU2d:
    return ftnn.BatchNormReLU2d(4)


def buffer(module: nn.Module) -> Any:
    return module._buffers["running_var"]


GUARDED: list[nn.Module] = [
    *(norm(), ftnn.BatchNormAct2d(4, act="gelu"), ftnn.BatchNormAct2d(4, act="identity", p=0.5)),
    *(ftnn.BatchNormActMaxPool2d(4, 2, act="identity"), ftnn.SyncBatchNormAct(4)),
]


@pytest.mark.parametrize("module", GUARDED, ids=lambda m: type(m).__name__ + m.act)
def test_what_would_lose_something_is_refused(module):
    module, conv = module.eval(), nn.Conv2d(4, 4, 1).eval()
    lost = rf"^running_var of {type(module).__name__} .* \+ a number looks like folding, .*fusedtricks\.to_stock"
    var = module.running_var
    for use in (
        *(lambda: fuse_conv_bn_eval(conv, module), lambda: fuse_linear_bn_eval(nn.Linear(3, 4).eval(), module)),
        *(lambda: var + 1e-5, lambda: 1e-5 + var, lambda: torch.add(var, 1e-5), lambda: var.add(other=1e-5)),
        *(lambda: var.double() + 1e-5, lambda: copy.deepcopy(var).to("cpu") + 1e-5, lambda: var.clone() + 1e-5),
    ):
        with pytest.raises(RuntimeError, match=lost):
            use()
    other = nn.BatchNorm2d(4).eval()
    other.running_var = var
    for use in (
        *(lambda: other(X), lambda: F.batch_norm(X, module.running_mean, var)),
        lambda: torch.batch_norm(X, None, None, module.running_mean, var, False, 0.1, 1e-5, False),
        lambda: torch.batch_norm_gather_stats_with_counts(
            X, X[0, :1, 0], X[0, :1, 0], module.running_mean, var, 0.1, 1e-5, torch.ones(1)
        ),
    ):
        with pytest.raises(RuntimeError, match=r"batch_norm\w* with running_var of .* looks like a converted layer"):
            use()
    with pytest.raises(RuntimeError, match=r"to_mkldnn with running_var of .* looks like a converted layer"):
        var.to_mkldnn()
    assert type(var.detach() + 1e-5) is Tensor
    torch.testing.assert_close(module(X), copy.deepcopy(module)(X))  # it still works itself


def test_nothing_to_lose():
    plain = ftnn.BatchNormAct2d(4, act="identity").eval()
    assert type(plain.running_var) is Tensor and plain.running_var is buffer(plain)
    fuse_conv_bn_eval(nn.Conv2d(4, 4, 1).eval(), plain)
    untracked = ftnn.BatchNormReLU2d(4, track_running_stats=False)
    assert untracked.running_var is None and untracked(X).min() == 0


def test_other_sums_are_not_folding():
    var = norm().running_var
    assert sum(norm().running_var for _ in range(3)).tolist() == [3.0] * 4
    for total in (
        var.add(torch.ones(4), alpha=0.1),
        torch.add(var, torch.ones(4), alpha=0.1),
        var + 0.1 * torch.ones(4),
    ):
        assert total.tolist() == pytest.approx([1.1] * 4)
    assert torch.log(var + 1).shape == (var + 0).shape == (4,)


def test_a_forward_of_ones_own_knows_what_follows():
    class Mine(ftnn.BatchNormReLU2d):
        def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
            return F.silu(nn.BatchNorm2d.forward(self, x))

    class Same(ftnn.BatchNormReLU2d):
        pass

    assert Mine(4)(X).shape == X.shape and type(Mine(4).running_var) is Tensor
    with pytest.raises(RuntimeError, match="looks like folding"):
        Same(4).running_var + 1e-5


def write_data(var: Tensor) -> None:
    var.data = torch.full((4,), 2.0)


@pytest.mark.parametrize(
    "write",
    [
        lambda var: var.fill_(2),
        lambda var: var.copy_(torch.full((4,), 2.0)),
        lambda var: var.mul_(0).add_(torch.full((4,), 2.0)),
        lambda var: var.add_(1),
        lambda var: var.lerp_(torch.full((4,), 3.0), 0.5),
        lambda var: var.data.copy_(torch.full((4,), 2.0)),
        lambda var: torch.add(var, torch.ones(4), out=var),
        lambda var: var.__setitem__(slice(None), 2.0),
        write_data,
    ],
)
def test_writes_reach_the_buffer(write):
    module = norm()
    write(module.running_var)
    assert type(buffer(module)) is Tensor and buffer(module).tolist() == [2.0] * 4
    torch.testing.assert_close(module.eval()(X), F.relu(F.batch_norm(X, torch.zeros(4), torch.full((4,), 2.0))))


def test_augmented_assignment():
    module = norm()
    module.running_var += 1
    module.running_var *= 0.5
    assert type(buffer(module)) is Tensor and buffer(module).tolist() == [1.0] * 4


def test_assignment_between_modules():
    a, b = norm(), norm()
    a.running_var = b.running_var
    assert buffer(a) is buffer(b)
    a.running_var = torch.ones(4)
    assert type(buffer(a)) is Tensor
    a.running_var = None
    assert a.running_var is None
    with pytest.raises(TypeError):
        a.running_var = "text"
    del b.running_var
    assert not hasattr(b, "running_var") and "running_var" not in b.state_dict()
    with pytest.raises(AttributeError):
        del b.running_var
    b.running_var = torch.ones(4)  # as with stock: an attribute now
    assert "running_var" not in b._buffers and b.running_var.tolist() == [1.0] * 4
    torch.testing.assert_close(b.eval()(X), norm().eval()(X))
    b.register_buffer("other", torch.ones(1))
    with pytest.raises(KeyError, match="already exists"):
        b.register_buffer("running_var", torch.ones(4))


def test_methods_of_modules():
    module = norm()
    module.running_var.fill_(3)
    module.reset_running_stats()
    module.reset_parameters()
    assert buffer(module).tolist() == [1.0] * 4
    for change in (nn.Module.half, nn.Module.double, lambda m: m.to("meta"), lambda m: m.to_empty(device="cpu")):
        assert type(buffer(change(module))) is Tensor
    assert isinstance(module, nn.BatchNorm2d) and dict(module.named_buffers())["running_var"] is buffer(module)
    module = norm()
    state = {"running_var": module.running_var} | {k: v for k, v in norm().state_dict().items() if k != "running_var"}
    other = norm()
    other.load_state_dict(state, assign=True)
    assert buffer(other) is buffer(module)
    swa_utils.update_bn([X, X + 1], nn.Sequential(module))
    assert buffer(module).tolist() != [1.0] * 4
    average = swa_utils.AveragedModel(module, use_buffers=True)
    average.update_parameters(module)
    torch.testing.assert_close(average.module.running_var, module.running_var)


def test_copies_and_files():
    module = norm()
    for load in (copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))):
        assert type(buffer(load(module))) is Tensor
        assert load(module.running_var).tolist() == [1.0] * 4
    file = io.BytesIO()
    torch.save({"attribute": module.running_var, "state": module.state_dict()}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert type(loaded["attribute"]) is Tensor and type(loaded["state"]["running_var"]) is Tensor


def test_reads():
    var = norm().running_var
    assert repr(var) == "tensor([1., 1., 1., 1.])" and var.shape == (4,) and len(var) == 4 and float(var[0]) == 1
    assert torch.equal(var, torch.ones(4)) and (var == 1).all() and isinstance(var, Tensor)
    assert var.numpy().tolist() == [1.0] * 4
    torch.testing.assert_close(var, torch.ones(4), rtol=0, atol=0)
    assert type(var * 2) is type(var + torch.ones(4)) is type(torch.stack([var, var])) is Tensor
    assert not var.requires_grad and var.device.type == "cpu" and not var.is_meta


def test_parametrised_and_functional():
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    module = norm().eval()
    parametrize.register_parametrization(module, "running_var", Twice())
    torch.testing.assert_close(module(X), F.relu(F.batch_norm(X, torch.zeros(4), torch.full((4,), 2.0))))
    state = {name: torch.full_like(value, 4.0) for name, value in norm().state_dict().items()}
    by_hand = F.relu(F.batch_norm(X, *(torch.full((4,), 4.0),) * 4))
    torch.testing.assert_close(torch.func.functional_call(norm().eval(), state, X), by_hand)
    gradient = torch.func.grad(lambda x: (norm().running_var * x).sum())(torch.ones(4))
    assert gradient.tolist() == [1.0] * 4


def test_without_memory():
    for make in (lambda: nn.utils.skip_init(ftnn.BatchNormReLU2d, 4), lambda: ftnn.BatchNormReLU2d(4, device="meta")):
        assert make().running_var.shape == (4,)
    with FakeTensorMode():
        module = norm()
        assert module.running_var.shape == (4,) and module(torch.empty(2, 4, 3, 3)).shape == (2, 4, 3, 3)
        assert norm().running_var.add(1).shape == (4,)


def test_compile_and_export():
    module = norm().eval()

    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = module

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x) * self.norm.running_var.sum()

    expected = module(X) * 4
    torch.testing.assert_close(torch.compile(Reads(), backend="eager", fullgraph=True)(X), expected)
    torch.testing.assert_close(torch.export.export(Reads(), (X,)).module()(X), expected)
    torch.testing.assert_close(torch.export.export(Reads(), (X,), strict=True).module()(X), expected)
    torch.testing.assert_close(torch.fx.symbolic_trace(Reads())(X), expected)


def test_distributed(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(nn.Sequential(norm()))
        model(X).sum().backward()
        assert type(buffer(model.module[0])) is Tensor
    finally:
        torch.distributed.destroy_process_group()
