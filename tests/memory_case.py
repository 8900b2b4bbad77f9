"""Small networks whose memory is accounted for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fusedtricks.memory import MemoryReport
from fusedtricks.memory.accounts import Account

SHAPE = (2, 2, 5, 5)
HIDDEN = 2 * 4 * 5 * 5 * 4  # bytes of what is between the two convolutions
SEED = 16


def two_layers() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 3, 1, bias=False)
    )


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + x)


class DenseLayer(nn.Module):
    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm, self.relu = nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(channels, growth, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.conv(self.relu(self.norm(torch.cat(features, 1))))


class DenseBlock(nn.Module):
    def __init__(self, channels: int, growth: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([DenseLayer(channels + i * growth, growth) for i in range(layers)])

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(features))
        return torch.cat(features, 1)


def stem(channels: int) -> list[nn.Module]:
    return [nn.Conv2d(3, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(inplace=True), nn.MaxPool2d(2)]


def head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(channels, 5)]


def vgg() -> nn.Module:
    middle = [nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True)]
    last = [nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    return nn.Sequential(*stem(8), *middle, *last, *head(16))


def resnet() -> nn.Module:
    return nn.Sequential(*stem(8), *[Residual(8) for _ in range(4)], *head(8))


def densenet() -> nn.Module:
    transition = [nn.BatchNorm2d(24), nn.ReLU(inplace=True), nn.Conv2d(24, 12, 1), nn.AvgPool2d(2)]
    return nn.Sequential(
        *stem(8), DenseBlock(8, 4, 4), *transition, DenseBlock(12, 4, 4), nn.BatchNorm2d(28), *head(28)
    )


def sizes(report: MemoryReport) -> list[int]:
    return [account.bytes for account in report.accounts]


def facts(account: Account) -> list[tuple[Any, ...]]:
    return [(kept.layers, kept.producer, kept.shape, kept.bytes) for kept in account.kept if len(kept.shape) > 1]
