"""Standard networks of stock layers, written as torchvision writes them: layers in place, the same parameters.

The U-Net is Ronneberger et al.'s (2015) with BatchNorm and padded convolutions, as it is commonly written. Widths and
depths are parameters, so that tests can make them small.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusedtricks.stock import initialise_convolutions

from . import models

CLASSES = 1000


class Stage(nn.Sequential):
    """Convolutions of 3 x 3, each with BatchNorm and ReLU, then max-pooling, as VGG stacks them."""

    def __init__(self, channels: int, width: int, convolutions: int) -> None:
        layers: list[nn.Module] = []
        for _ in range(convolutions):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            channels = width
        super().__init__(*layers, nn.MaxPool2d(2, 2))


class VGG16BN(nn.Module):
    """Simonyan and Zisserman (2014), with BatchNorm. torchvision's `features` are flat; here each stage is a module."""

    def __init__(self, width: int = 64, hidden: int = 4096, classes: int = CLASSES) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width, 8 * width, 8 * width]
        stages = zip([3, *widths], widths, (2, 2, 3, 3, 3), strict=False)
        self.features = nn.Sequential(*(Stage(*stage) for stage in stages))
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        self.classifier = nn.Sequential(
            nn.Linear(widths[-1] * 7 * 7, hidden),
            nn.ReLU(True),
            nn.Dropout(),
            nn.Linear(hidden, hidden),
            nn.ReLU(True),
            nn.Dropout(),
            nn.Linear(hidden, classes),
        )
        initialise_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = self.avgpool(x)
        x = torch.flatten(x, 1)
        return self.classifier(x)


class Bottleneck(nn.Module):
    """He et al. (2015), with the stride in the 3 x 3 convolution."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != out_channels:
            projection = nn.Conv2d(channels, out_channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        identity = x

        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)

        out = self.conv2(out)
        out = self.bn2(out)
        out = self.relu(out)

        out = self.conv3(out)
        out = self.bn3(out)

        if self.downsample is not None:
            identity = self.downsample(x)

        out += identity
        out = self.relu(out)

        return out


class ResNet50(nn.Module):
    """He et al. (2015): four stages of bottlenecks."""

    def __init__(self, width: int = 64, depths: Sequence[int] = (3, 4, 6, 3), classes: int = CLASSES) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.inplanes = width
        self.layer1 = self._make_layer(width, depths[0])
        self.layer2 = self._make_layer(2 * width, depths[1], stride=2)
        self.layer3 = self._make_layer(4 * width, depths[2], stride=2)
        self.layer4 = self._make_layer(8 * width, depths[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(self.inplanes, classes)
        initialise_convolutions(self)

    def _make_layer(self, width: int, depth: int, stride: int = 1) -> nn.Sequential:
        blocks = []
        for block in range(depth):
            blocks.append(Bottleneck(self.inplanes, width, 1 if block else stride))
            self.inplanes = width * Bottleneck.expansion
        return nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = self.bn1(x)
        x = self.relu(x)
        x = self.maxpool(x)

        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)
        x = self.layer4(x)

        x = self.avgpool(x)
        x = torch.flatten(x, 1)
        x = self.fc(x)

        return x


Activation = Callable[..., nn.Module]


class ConvNormActivation(nn.Sequential):
    """A convolution, BatchNorm and the activation, in place."""

    def __init__(
        self, act: Activation, channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        padding = kernel // 2
        convolution = nn.Conv2d(channels, out_channels, kernel, stride, padding, groups=groups, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(out_channels), act(inplace=True))


class InvertedResidual(nn.Module):
    """Sandler et al. (2018)."""

    def __init__(self, act: Activation, channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        self.use_res_connect = stride == 1 and channels == out_channels
        width = channels * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(ConvNormActivation(act, channels, width, 1))
        layers += [
            ConvNormActivation(act, width, width, 3, stride, groups=width),
            nn.Conv2d(width, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        ]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        if self.use_res_connect:
            return x + self.conv(x)
        else:
            return self.conv(x)


class MobileNetV2(nn.Module):
    """Sandler et al. (2018), with any activation for ReLU6; `width` multiplies all channels."""

    stages = models.MobileNetV2.stages

    def __init__(self, act: Activation = nn.ReLU6, width: float = 1.0, classes: int = CLASSES) -> None:
        super().__init__()
        first, *inner, last = (_scaled(count, width) for count in (32, *(stage[1] for stage in self.stages), 1280))
        self.features = nn.Sequential(
            ConvNormActivation(act, 3, first, 3, stride=2),
            *self._blocks(act, first, inner),
            ConvNormActivation(act, inner[-1], last, 1),
        )
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes))
        initialise_convolutions(self)

    def _blocks(self, act: Activation, channels: int, widths: Sequence[int]) -> Iterator[nn.Module]:
        for (expansion, _, blocks, stride), out_channels in zip(self.stages, widths, strict=True):
            for block in range(blocks):
                yield InvertedResidual(act, channels, out_channels, 1 if block else stride, expansion)
                channels = out_channels

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = F.adaptive_avg_pool2d(x, (1, 1))
        x = torch.flatten(x, 1)
        x = self.classifier(x)
        return x


def _scaled(channels: int, width: float) -> int:
    """A multiple of eight, at least eight."""
    return max(8, round(channels * width / 8) * 8)


class DenseLayer(nn.Module):
    """Huang et al. (2016): a bottleneck of 1 x 1, then 3 x 3, of all features so far."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(channels, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, inputs: list[Tensor]) -> Tensor:
        concated_features = torch.cat(inputs, 1)
        bottleneck_output = self.conv1(self.relu1(self.norm1(concated_features)))
        return self.conv2(self.relu2(self.norm2(bottleneck_output)))


class DenseBlock(nn.ModuleDict):
    """Layers that each get what all before them gave."""

    def __init__(self, layers: int, channels: int, growth: int) -> None:
        super().__init__()
        for number in range(layers):
            self.add_module(f"denselayer{number + 1}", DenseLayer(channels + number * growth, growth))

    def forward(self, init_features: Tensor) -> Tensor:
        features = [init_features]
        for _, layer in self.items():
            new_features = layer(features)
            features.append(new_features)
        return torch.cat(features, 1)


class Transition(nn.Sequential):
    """Halves the channels, the height and the width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(channels, channels // 2, 1, bias=False)
        self.pool = nn.AvgPool2d(2, 2)


class DenseNet121(nn.Module):
    """Huang et al. (2016): four dense blocks, with transitions between them."""

    def __init__(self, growth: int = 32, depths: Sequence[int] = (6, 12, 24, 16), classes: int = CLASSES) -> None:
        super().__init__()
        channels = 2 * growth
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv0=nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False),
            norm0=nn.BatchNorm2d(channels),
            relu0=nn.ReLU(inplace=True),
            pool0=nn.MaxPool2d(3, stride=2, padding=1),
        )
        for number, depth in enumerate(depths, 1):
            layers[f"denseblock{number}"] = DenseBlock(depth, channels, growth)
            channels += depth * growth
            if number < len(depths):
                layers[f"transition{number}"] = Transition(channels)
                channels //= 2
        layers["norm5"] = nn.BatchNorm2d(channels)
        self.features = nn.Sequential(layers)
        self.classifier = nn.Linear(channels, classes)
        initialise_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        features = self.features(x)
        out = F.relu(features, inplace=True)
        out = F.adaptive_avg_pool2d(out, (1, 1))
        out = torch.flatten(out, 1)
        out = self.classifier(out)
        return out


class DoubleConv(nn.Sequential):
    """Two convolutions of 3 x 3, each with BatchNorm and ReLU."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class Up(nn.Module):
    """Doubles height and width by a transposed convolution, and joins the skip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(channels, channels // 2, 2, stride=2)
        self.conv = DoubleConv(channels, channels // 2)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.up(x)
        x = torch.cat([skip, x], dim=1)
        return self.conv(x)


class UNet(nn.Module):
    """Ronneberger et al. (2015): halves height and width `depth` times, then doubles them again."""

    def __init__(self, width: int = 64, depth: int = 4, classes: int = 2) -> None:
        super().__init__()
        widths = [width << number for number in range(depth + 1)]
        self.inc = DoubleConv(3, width)
        self.pool = nn.MaxPool2d(2)
        self.down = nn.ModuleList(DoubleConv(count, 2 * count) for count in widths[:-1])
        self.up = nn.ModuleList(Up(count) for count in reversed(widths[1:]))
        self.outc = nn.Conv2d(width, classes, 1)
        initialise_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inc(x)
        skips = []
        for down in self.down:
            skips.append(x)
            x = down(self.pool(x))
        for up in self.up:
            x = up(x, skips.pop())
        return self.outc(x)


class Layer(nn.Sequential):
    """A convolution of 3 x 3, BatchNorm and LeakyReLU, not in place: stock keeps three tensors."""

    def __init__(self, width: int) -> None:
        convolution = nn.Conv2d(width, width, 3, padding=1, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(width), nn.LeakyReLU(0.01))


class FourLayers(nn.Sequential):
    """Nothing but four convolutions with BatchNorm and LeakyReLU."""

    def __init__(self, width: int = 64) -> None:
        super().__init__(*(Layer(width) for _ in range(4)))
        initialise_convolutions(self)


MobileNetV2SiLU = partial(MobileNetV2, nn.SiLU)
BLOCKS = (Stage, Bottleneck, InvertedResidual, DenseLayer, Transition, DoubleConv, Layer)


def blocks(network: nn.Module) -> list[nn.Module]:
    """The parts that a user of `torch.utils.checkpoint` would run in one checkpoint each: all but the ends."""
    return [module for module in network.modules() if isinstance(module, BLOCKS)]
