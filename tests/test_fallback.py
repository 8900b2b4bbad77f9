"""Tensors that there are no kernels for: stock's result, or stock's error, and a note that it was stock's."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_map

import fusedtricks
import fusedtricks.functional as F
import fusedtricks.nn as fnn
from fusedtricks.functional import fallbacks


class Wrapped(Tensor):
    """A wrapper subclass that knows stock's operators alone, as quantised and encrypted tensors do."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapped:
        return Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, requires_grad=inner.requires_grad)

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def, override]
        if func.namespace not in ("aten", "prim"):
            raise NotImplementedError(f"unknown operator {func}")
        plain = tree_map(lambda x: x.inner if isinstance(x, Wrapped) else x, (args, kwargs or {}))
        out = tree_map(lambda x: Wrapped(x) if isinstance(x, Tensor) else x, func(*plain[0], **plain[1]))
        return return_and_correct_aliasing(func, args, kwargs or {}, out)


def _distributed(x: Tensor) -> Tensor:
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    return distribute_tensor(x, init_device_mesh("cpu", (1,)), [Shard(0)])


def _nested(layout: torch.layout) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.nested.nested_tensor([x[0], x[1][:2]], layout=layout)


X = torch.linspace(-4, 7, 4 * 6 * 5 * 5).view(4, 6, 5, 5)
KINDS: dict[str, Callable[[], Tensor]] = {
    "int64": lambda: X.long(),
    "int8": lambda: X.to(torch.int8),
    "uint8": lambda: X.abs().to(torch.uint8),
    "bool": lambda: X > 0,
    "complex64": lambda: torch.complex(X, X.flip(0)),
    "float8": lambda: X.to(torch.float8_e4m3fn),
    "sparse": lambda: torch.eye(6).to_sparse(),
    "csr": lambda: torch.eye(6).to_sparse_csr(),
    "mkldnn": lambda: X.to_mkldnn(),
    "quantised": lambda: torch.quantize_per_tensor(X, 0.1, 10, torch.quint8),
    "nested": lambda: _nested(torch.strided)(X[:2, :3, 0]),
    "jagged": lambda: _nested(torch.jagged)(X[:2, :3, 0]),
    "wrapped": lambda: Wrapped(X.clone()),
    "distributed": lambda: _distributed(X.clone()),
}
_STOCK: dict[str, tuple[nn.Module, nn.Module]] = {
    **{
        name: (getattr(nn, name)(), getattr(fnn, name)())
        for name in ("ReLU6", "LeakyReLU", "ELU", "SELU", "GELU", "Sigmoid", "Tanh", "SiLU", "Mish")
    },
    **{name: (getattr(nn, name)(), getattr(fnn, name)()) for name in ("ReLU", "Hardswish", "Hardsigmoid", "Softplus")},
    **{
        f"{name} in place": (getattr(nn, name)(inplace=True), getattr(fnn, name)(inplace=True))
        for name in ("ReLU", "LeakyReLU", "SiLU", "Hardsigmoid", "Dropout", "Dropout2d")
    },
    **{
        name: (getattr(nn, name)(), getattr(fnn, name)())
        for name in ("Dropout", "Dropout2d", "AlphaDropout", "FeatureAlphaDropout")
    },
    "Dropout1d": (nn.Dropout1d(), fnn.Dropout1d()),
    "Dropout3d": (nn.Dropout3d(), fnn.Dropout3d()),
    "BatchNormReLU2d": (nn.Sequential(nn.BatchNorm2d(6), nn.ReLU()), fnn.BatchNormReLU2d(6)),
    "BatchNormReLU2d in evaluation": (
        nn.Sequential(nn.BatchNorm2d(6), nn.ReLU()).eval(),
        fnn.BatchNormReLU2d(6).eval(),
    ),
    "BatchNormActMaxPool2d": (
        nn.Sequential(nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)),
        fnn.BatchNormActMaxPool2d(6, 2),
    ),
    "ActDropout": (nn.Sequential(nn.GELU(), nn.Dropout(0.5)), fnn.ActDropout("gelu", 0.5)),
    "FractionalMaxPool2d": (nn.FractionalMaxPool2d(2, 3), fnn.FractionalMaxPool2d(2, 3)),
}


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Iterator[None]:
    """A process group of one, for DTensor."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def outcome(module: nn.Module, x: Tensor) -> Any:
    """The class of the error, or the result."""
    torch.manual_seed(0)
    try:
        return module(x)
    except Exception as error:
        return type(error)


def values(x: Tensor) -> Any:
    if isinstance(x, Wrapped):
        return values(x.inner)
    if x.is_nested:
        return [values(part) for part in x.unbind()]
    if isinstance(x, torch.distributed.tensor.DTensor):
        return values(x.to_local())
    if x.is_quantized:
        return x.int_repr()
    return x if x.layout is torch.strided else x.to_dense()


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.parametrize("module", _STOCK)
@pytest.mark.parametrize("kind", KINDS)
def test_as_stock(kind, module):
    """The same result, or an error of the same class."""
    stock, ours = (copy.deepcopy(each) for each in _STOCK[module])
    expected, actual = outcome(stock, KINDS[kind]()), outcome(ours, KINDS[kind]())
    if isinstance(expected, type):
        assert isinstance(actual, type), f"stock raises {expected.__name__}"
        assert issubclass(actual, expected) or module == "FractionalMaxPool2d"  # ours says which dimensions it takes
        return
    assert not isinstance(actual, type), f"ours raises {actual.__name__}"
    assert type(actual) is type(expected) and actual.layout is expected.layout and actual.dtype is expected.dtype
    torch.testing.assert_close(values(actual), values(expected), equal_nan=True)
    torch.testing.assert_close(list(ours.buffers()), list(stock.buffers()))


@pytest.mark.parametrize("kind", ["int64", "sparse", "jagged", "wrapped", "distributed"])
def test_fused_models(kind):
    model = nn.Sequential(nn.ReLU(), nn.Dropout(0.5))
    expected, actual = outcome(model, KINDS[kind]()), outcome(fusedtricks.fuse(model), KINDS[kind]())
    if isinstance(expected, type):
        assert actual is expected
    else:
        assert type(actual) is type(expected)


def test_gradients_reach_a_wrapped_tensor():
    """The composition is differentiable."""
    x = KINDS["distributed"]().requires_grad_()
    F.gelu(x).sum().backward()
    expected = X.clone().requires_grad_()
    nn.functional.gelu(expected).sum().backward()
    assert x.grad is not None and expected.grad is not None
    torch.testing.assert_close(values(x.grad), expected.grad)


def test_seeds_count_without_kernels():
    """A seed gives the same mask as in a kernel."""
    x = torch.ones(40)
    assert torch.equal(F.dropout(Wrapped(x), 0.5, seed=3).inner, F.dropout(x, 0.5, seed=3))  # type: ignore[attr-defined]


def test_calls_are_counted():
    call = "batch_norm_act(gelu): dtype torch.float8_e4m3fn"
    before = fallbacks()
    for _ in range(3):
        F.relu(torch.ones(2, dtype=torch.int64))
    F.relu(torch.ones(2))
    with pytest.raises(RuntimeError, match="not implemented"):
        F.batch_norm_act(torch.ones(2, 3).to(torch.float8_e4m3fn), None, None, act="gelu", training=True)
    after = fallbacks()
    assert after["activation(relu): dtype torch.int64"] == before.get("activation(relu): dtype torch.int64", 0) + 3
    assert after[call] == before.get(call, 0) + 1
    assert sum(after.values()) == sum(before.values()) + 4


def test_fused_models_count_and_are_strict(monkeypatch):
    model = fusedtricks.fuse(nn.Sequential(nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5)))
    stock, x = nn.Sequential(nn.ReLU(), nn.Dropout(0.5)), KINDS["wrapped"]()
    assert type(model(x)) is type(stock(x))
    assert any(call.startswith("a fused model: the tensor subclass Wrapped") for call in fallbacks())
    monkeypatch.setenv("FUSEDTRICKS_STRICT", "1")
    with pytest.raises(NotImplementedError, match=r"a fused model.*Wrapped"):
        model(x)
    assert model(X).shape == X.shape


@pytest.mark.parametrize(
    ("kind", "reason"),
    {
        "int64": "dtype torch.int64",
        "sparse": "layout torch.sparse_coo",
        "nested": "nested",
        "wrapped": "subclass Wrapped",
    }.items(),
)
def test_strict(kind, reason, monkeypatch):
    monkeypatch.setenv("FUSEDTRICKS_STRICT", "1")
    before = fallbacks()
    with pytest.raises(NotImplementedError, match=f"relu.*{reason}.*take float32"):
        fnn.ReLU()(KINDS[kind]())
    assert fallbacks() == before
    assert torch.equal(fnn.ReLU()(torch.ones(2)), torch.ones(2))
    monkeypatch.setenv("FUSEDTRICKS_STRICT", "0")
    fnn.ReLU()(KINDS["int64"]())


def test_info_counts():
    code = "import torch; from fusedtricks import functional as F, info; F.relu(torch.ones(2).long()); info.main()"
    lines = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert "1 of activation(relu): dtype torch.int64" in "\n".join(line for line in lines if "fallbacks" in line)


def test_tracing_tensors_have_kernels():
    """FakeTensor is a subclass too, and sees the operators that are traced."""
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    before = fallbacks()
    with FakeTensorMode():
        assert F.relu(torch.ones(2)).shape == (2,)
    graph = make_fx(lambda x: F.batch_norm_act(x, None, None, training=True), tracing_mode="fake")(X)
    assert any("fusedtricks" in str(node.target) for node in graph.graph.nodes)
    assert fallbacks() == before


def test_compiled():
    """A compiled call takes stock's operators where there is no kernel."""
    compiled = torch.compile(lambda x: F.relu(x) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(torch.tensor([-2, 3])), torch.tensor([1, 4]))
