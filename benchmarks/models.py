"""Standard networks, each written once for stock and fused layers, with torchvision's parameter names."""

from collections.abc import Iterator

from torch import Tensor, nn

from fusedtricks.stock import Layers, initialise_convolutions


class Bottleneck(nn.Module):
    """He et al. (2015): convolutions of 1 x 1, 3 x 3 (with the stride), 1 x 1 (to four times the width); a shortcut."""

    expansion = 4

    def __init__(self, layers: Layers, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = layers.norm_act(width, act="relu")
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = layers.norm_act(width, act="relu")
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = layers.norm_act(out_channels, act="relu")
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != out_channels:
            projection = nn.Conv2d(channels, out_channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, layers.norm_act(out_channels, act="identity"))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x))
        y = self.bn2(self.conv2(y))
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.bn3(self.conv3(y), shortcut)


class ResNet50(nn.Module):
    """Stages of 3, 4, 6 and 3 bottlenecks; images of 224 x 224, 25.6 million weights."""

    def __init__(self, layers: Layers, classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = layers.norm_act(64, act="relu")
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(layers, 64, 64, 3, stride=1)
        self.layer2 = _stage(layers, 256, 128, 4, stride=2)
        self.layer3 = _stage(layers, 512, 256, 6, stride=2)
        self.layer4 = _stage(layers, 1024, 512, 3, stride=2)
        self.fc = nn.Linear(2048, classes)
        initialise_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        x = self.maxpool(self.bn1(self.conv1(images)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean(dim=(2, 3)))


def _stage(layers: Layers, channels: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    first = Bottleneck(layers, channels, width, stride)
    rest = (Bottleneck(layers, width * Bottleneck.expansion, width, 1) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


class InvertedResidual(nn.Module):
    """Sandler et al. (2018): expand, depthwise 3 x 3, project without activation; a skip if the shapes agree."""

    def __init__(self, layers: Layers, channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = channels * expansion
        self.skip = stride == 1 and channels == out_channels
        expand = [_conv_norm_relu6(layers, channels, width, 1)] if expansion != 1 else []
        self.conv = nn.Sequential(
            *expand,
            _conv_norm_relu6(layers, width, width, 3, stride, groups=width),
            nn.Conv2d(width, out_channels, 1, bias=False),
            layers.norm_act(out_channels, act="identity"),
        )

    def forward(self, x: Tensor) -> Tensor:
        *convolutions, norm = self.conv
        y = x
        for convolution in convolutions:
            y = convolution(y)
        return norm(y, x if self.skip else None)


class MobileNetV2(nn.Module):
    """Width 1; images of 224 x 224, 3.5 million weights."""

    # expansion, channels, blocks, stride of the first block
    stages = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )

    def __init__(self, layers: Layers, classes: int = 1000, dropout: float = 0.2) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _conv_norm_relu6(layers, 3, 32, 3, stride=2),
            *self._blocks(layers),
            _conv_norm_relu6(layers, 320, 1280, 1),
        )
        self.classifier = nn.Sequential(layers.dropout(dropout), nn.Linear(1280, classes))
        initialise_convolutions(self)

    def _blocks(self, layers: Layers) -> Iterator[nn.Module]:
        channels = 32
        for expansion, out_channels, blocks, first_stride in self.stages:
            for position in range(blocks):
                stride = first_stride if position == 0 else 1
                yield InvertedResidual(layers, channels, out_channels, stride, expansion)
                channels = out_channels

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images).mean(dim=(2, 3)))


def _conv_norm_relu6(
    layers: Layers, channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    padding = kernel // 2
    convolution = nn.Conv2d(channels, out_channels, kernel, stride, padding, groups=groups, bias=False)
    return nn.Sequential(convolution, layers.norm_act(out_channels, act="relu6"))


class DropoutMLP(nn.Module):
    """Three wide layers: 4096 inputs, two hidden layers of 4096 with ReLU and dropout, ten classes."""

    def __init__(self, layers: Layers, width: int = 4096, classes: int = 10, dropout: float = 0.5) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, width),
            layers.relu(),
            layers.dropout(dropout),
            nn.Linear(width, width),
            layers.relu(),
            layers.dropout(dropout),
            nn.Linear(width, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)
