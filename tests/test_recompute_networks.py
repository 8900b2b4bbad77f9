"""`fuse(model, recompute=True)` on networks of every kind: gradients and statistics of the same bits, and less kept."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fusedtricks
from fusedtricks import memory_report, recompute

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.plain_networks import VGG16BN, DenseBlock, DenseNet121, MobileNetV2, ResNet50, UNet

NETWORKS: dict[str, tuple[Callable[[], nn.Module], float]] = {
    "vgg": (lambda: VGG16BN(width=4, hidden=16, classes=5), 0.6),
    "resnet": (lambda: ResNet50(width=4, depths=(3, 2, 3, 1), classes=5), 0.7),
    "mobilenet": (lambda: MobileNetV2(width=0.25, classes=5), 0.45),
    "mobilenet-silu": (lambda: MobileNetV2(nn.SiLU, width=0.25, classes=5), 0.45),
    "densenet": (lambda: DenseNet121(growth=8, depths=(3, 4, 3), classes=5), 0.4),
    "unet": (lambda: UNet(width=4), 0.6),
}
"""Small ones, and what part of stock's bytes they may keep at most."""

each_network = pytest.mark.parametrize(("make", "most"), NETWORKS.values(), ids=NETWORKS)


def step(model: nn.Module, x: Tensor, autocast: bool = False) -> list[Tensor]:
    """Loss, gradients and buffers of a step."""
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(x).float().square().mean()
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters()), *model.buffers()]


def images(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(3, 3, 64, 64).to(dtype)


@each_network
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("arithmetic", ["float32", "autocast", "bfloat16"])
def test_same_bits(make, most, layout, arithmetic):
    dtype = torch.bfloat16 if arithmetic == "bfloat16" else torch.float32
    fused = fusedtricks.fuse(make().to(dtype=dtype, memory_format=layout))
    x = images(dtype)
    expected = step(copy.deepcopy(fused), x, arithmetic == "autocast")
    for depth in (0, 1, None):
        other = fusedtricks.fuse(fused, recompute=recompute(depth=depth))
        found = step(other, x, arithmetic == "autocast")
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), depth


@each_network
def test_frozen_and_in_evaluation(make, most):
    """BatchNorms in evaluation mode inside training, and gradients in evaluation."""
    fused = fusedtricks.fuse(make())
    x = images()
    step(fused, x)
    for mode in (fused.eval, lambda: _freeze(fused)):
        fused.train()
        mode()
        fused.zero_grad()
        expected = step(copy.deepcopy(fused), x)
        found = step(fusedtricks.fuse(fused, recompute=True), x)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def _freeze(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


@each_network
def test_what_is_kept(make, most):
    reports = [memory_report(make(), images().to("meta"), depth=depth) for depth in (0, 1, None)]
    kept = [report.recompute.bytes for report in reports]
    assert kept[1] <= most * reports[1].stock.bytes
    assert kept == sorted(kept, reverse=True)


def test_densely_connected_layers_keep_each_output_once():
    """Twice as many layers keep twice as much, not four times."""
    few, many = (
        memory_report(DenseBlock(layers, channels=8, growth=8), torch.empty(2, 8, 16, 16, device="meta"))
        for layers in (8, 16)
    )
    assert many.recompute.bytes <= 2.1 * few.recompute.bytes
    assert many.stock.bytes > 2.9 * few.stock.bytes  # 3200 channels to 1088


def test_data_parallel():
    """DistributedDataParallel around a model that recomputes, in a group of one process."""
    from torch.nn.parallel import DistributedDataParallel

    fused = fusedtricks.fuse(NETWORKS["resnet"][0]())
    x = images()
    expected = step(copy.deepcopy(fused), x)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model = DistributedDataParallel(fusedtricks.fuse(fused, recompute=True))
        found = step(model, x)
    finally:
        torch.distributed.destroy_process_group()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
