"""torch.compile and torch.export: no graph break, the eager values, gradients, statistics and masks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from network import Network
from torch import Tensor
from torch.utils._triton import has_triton

import fusedtricks.nn as ftnn
from fusedtricks.functional import activation, dropout


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    # Inductor cannot fill buffers that it allocates itself, and warns about each.
    torch.use_deterministic_algorithms(False)
    yield
    torch._dynamo.reset()


def run(model: Callable[[Tensor], Tensor], parameters: list[Tensor], x: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    y = model(x)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *parameters])]


@pytest.mark.parametrize(
    ("backend", "dynamic"),
    [("aot_eager", False), ("aot_eager", True), ("inductor", False), ("inductor", True)],
)
@pytest.mark.usefixtures("fresh_compiler")
def test_compile(backend, dynamic, device):
    """Values, gradients and running statistics, without graph breaks; other sizes do not recompile."""
    if backend == "inductor" and device.type == "cuda" and not has_triton():
        pytest.skip("inductor needs Triton")
    eager = Network().to(device)
    twin = copy.deepcopy(eager)
    compiled = torch.compile(twin, fullgraph=True, dynamic=dynamic, backend=backend)
    for size in [(3, 4, 6, 5), (5, 4, 7, 9), (4, 4, 8, 3)][: 3 if dynamic else 1]:
        with torch._dynamo.config.patch(error_on_recompile=size[0] != 3):
            x = torch.randn(size, device=device)
            actual = run(compiled, list(twin.parameters()), x)
            torch.testing.assert_close(actual, run(eager, list(eager.parameters()), x))
            torch.testing.assert_close(twin.state_dict(), eager.state_dict())
    assert twin.bn1.num_batches_tracked == (3 if dynamic else 1)


@pytest.mark.usefixtures("fresh_compiler")
def test_compile_in_evaluation_and_in_place(device):
    bn = ftnn.BatchNormReLU2d(4, device=device).eval()

    def function(x: Tensor) -> Tensor:
        return activation(bn(x) * 2 - 1, "elu", inplace=True)

    x = torch.randn(3, 4, 5, 6, device=device)
    torch.testing.assert_close(torch.compile(function, fullgraph=True, backend="aot_eager")(x), function(x))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_dropout_has_the_eager_mask(inplace, device):
    """With the generator and with a seed; forward and backward use the same mask."""

    def function(x: Tensor) -> Tensor:
        return dropout(x * 1, 0.5, inplace=inplace)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    x = torch.ones(33, 7, device=device)
    torch.manual_seed(1)
    expected = [run(function, [], x), run(function, [], x)]
    torch.manual_seed(1)
    actual = [run(compiled, [], x), run(compiled, [], x)]
    torch.testing.assert_close(actual, expected)
    assert not torch.equal(expected[0][0], expected[1][0])


@pytest.mark.usefixtures("fresh_compiler")
def test_compile_under_autocast(device):
    bn = ftnn.BatchNormReLU2d(4, device=device)
    compiled = torch.compile(copy.deepcopy(bn), fullgraph=True, backend="aot_eager")
    x, residual = torch.randn(2, 3, 4, 5, 6, device=device)
    x = x.bfloat16()
    with torch.autocast(device.type, torch.bfloat16):
        actual, expected = compiled(x, residual), bn(x, residual)
    assert actual.dtype is expected.dtype is torch.float32
    torch.testing.assert_close(actual, expected)


def test_export(device):
    model = Network().to(device).eval()
    model.bn1.running_mean.normal_()
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(model, (torch.randn(3, 4, 6, 5, device=device),), dynamic_shapes=({0: batch},))
    x = torch.randn(7, 4, 6, 5, device=device)
    torch.testing.assert_close(program.module()(x), model(x))
