"""The input shapes of the cases, by their names."""

from .case import shape_text

Shapes = dict[str, tuple[int, ...]]

# (channels, height, width) of each different BatchNorm input of the network, from its input to its output.
RESNET50 = (
    (64, 112, 112),
    (64, 56, 56),
    (256, 56, 56),
    (128, 56, 56),
    (128, 28, 28),
    (512, 28, 28),
    (256, 28, 28),
    (256, 14, 14),
    (1024, 14, 14),
    (512, 14, 14),
    (512, 7, 7),
    (2048, 7, 7),
)
MOBILENETV2_EXPANDED = (
    (32, 112, 112),
    (96, 112, 112),
    (144, 56, 56),
    (192, 28, 28),
    (384, 14, 14),
    (960, 7, 7),
    (1280, 7, 7),
)
MOBILENETV2_PROJECTED = ((24, 56, 56), (32, 28, 28), (96, 14, 14), (320, 7, 7))


def images(network: str, batch: int, *shapes: tuple[int, int, int]) -> Shapes:
    """Batches of images of these (channels, height, width), named after the network and the shape."""
    return {f"{network}-{shape_text((batch, *shape))}": (batch, *shape) for shape in shapes}


def some(shapes: Shapes, *endings: str) -> Shapes:
    """Those whose names end so."""
    return {name: shape for name, shape in shapes.items() if name.endswith(endings)}


RESNET50_SHAPES = images("resnet50", 32, *RESNET50)
EXPANDED_SHAPES = images("mobilenetv2", 32, *MOBILENETV2_EXPANDED)
PROJECTED_SHAPES = images("mobilenetv2", 32, *MOBILENETV2_PROJECTED)
CIFAR_SHAPES: Shapes = {"cifar-128x64x32x32": (128, 64, 32, 32)}
VIDEO_SHAPES: Shapes = {"video-4x16x16x56x56": (4, 16, 16, 56, 56)}
MLP_SHAPES: Shapes = {"mlp-1024x4096": (1024, 4096), "mlp-256x4096": (256, 4096)}
TINY_SHAPES: Shapes = {"tiny-64x128": (64, 128)}
VIT_SHAPES: Shapes = {"vit-64x197x384": (64, 197, 384)}
TRANSFORMER_SHAPES: Shapes = {"vit-small-16x197x384": (16, 197, 384), "vit-base-8x197x768": (8, 197, 768)}
DROP_CONNECT_SHAPES: Shapes = {"linear-64x1024": (64, 1024)}

TYPICAL_SHAPES = some(RESNET50_SHAPES, "32x64x56x56", "32x512x28x28", "32x256x14x14", "32x512x7x7")
STEM_SHAPES = some(RESNET50_SHAPES, "32x64x112x112")
LARGE_SHAPES = some(RESNET50_SHAPES, "32x64x56x56")
LARGEST_SHAPES = some(RESNET50_SHAPES, "32x256x56x56")
