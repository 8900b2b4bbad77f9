"""A small residual network, written once for both stock and fused layers."""

from torch import Tensor, nn

from ..stock import Layers, initialise_convolutions
from .data import CLASSES

WIDTHS = (16, 32, 64)
BLOCKS_PER_STAGE = 2


class ResidualBlock(nn.Module):
    """The basic block of He et al. (2015): two 3 x 3 convolutions, with a shortcut added before the last activation."""

    def __init__(self, layers: Layers, act: str, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.norm1 = layers.norm_act(width, act=act)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = layers.norm_act(width, act=act)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            projection = nn.Conv2d(channels, width, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, layers.norm_act(width, act="identity"))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.conv1(x))
        return self.norm2(self.conv2(y), self.shortcut(x))


class ResidualNetwork(nn.Module):
    """A stem, three stages of residual blocks (the last two halve the image), global mean, and a linear layer."""

    def __init__(self, layers: Layers, act: str = "relu", dropout: float = 0.0) -> None:
        super().__init__()
        channels = WIDTHS[0]
        self.stem = nn.Sequential(nn.Conv2d(1, channels, 3, padding=1, bias=False), layers.norm_act(channels, act=act))
        blocks: list[nn.Module] = []
        for width in WIDTHS:
            for position in range(BLOCKS_PER_STAGE):
                stride = 2 if position == 0 and width != WIDTHS[0] else 1
                blocks.append(ResidualBlock(layers, act, channels, width, stride))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.dropout = layers.dropout(dropout) if dropout else nn.Identity()
        self.classifier = nn.Linear(channels, CLASSES)
        initialise_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        """Images (n, 1, height, width) -> logits (n, CLASSES)."""
        features = self.blocks(self.stem(images)).mean(dim=(2, 3))
        return self.classifier(self.dropout(features))
