"""The whole networks whose training steps are timed."""

from dataclasses import replace
from functools import partial

import torch

from .case import Case
from .end_to_end import Family, Network, build_step
from .families import CLASSES, classifier
from .models import DropoutMLP, MobileNetV2, ResNet50
from .workload import Workload

Shape = tuple[int, ...]

NETWORKS: dict[str, tuple[Network, Shape]] = {
    "resnet50": (Network(ResNet50, classes=1000), (16, 3, 224, 224)),
    "mobilenetv2": (Network(MobileNetV2, classes=1000), (32, 3, 224, 224)),
    "mlp": (Network(DropoutMLP, classes=10), (256, 4096)),
}
"""Written for stock and for fused layers, with their input shapes."""

_RESNET18 = {"layer_type": "basic", "depths": [2] * 4, "hidden_sizes": [64, 128, 256, 512]}
_REGNET_Y_1_6GF = {"depths": [2, 5, 14, 2], "hidden_sizes": [48, 120, 336, 888], "groups_width": 24}

FAMILIES: dict[str, tuple[Family, Shape]] = {
    name: (Family(partial(classifier, kind, **settings), CLASSES), shape)
    for name, kind, settings, shape in (
        ("resnet50", "ResNet", {}, (8, 3, 224, 224)),
        ("resnet18", "ResNet", _RESNET18, (16, 3, 224, 224)),
        ("regnet-y", "RegNet", _REGNET_Y_1_6GF, (8, 3, 224, 224)),
        ("mobilenet-v1", "MobileNetV1", {}, (16, 3, 224, 224)),
        ("mobilenet-v2", "MobileNetV2", {}, (16, 3, 224, 224)),
    )
}
"""Hugging Face's, of stock layers, in their default configurations unless settings are given."""


SMALL = (2, 3, 32, 32)
"""So small that what a call costs the host decides."""


def network_case(
    name: str, network: Network | Family, shape: Shape, layout: str, dtype: torch.dtype = torch.float32
) -> Case:
    """A training step of a network that is written with fused layers, or fused by `fusedtricks.fuse`."""
    op = "fuse" if isinstance(network, Family) else "end_to_end"
    return Case(op, name, shape, dtype, layout, "training step", partial(build_step, network))


def network_cases() -> list[Case]:
    """Each network in each layout that its input has."""
    networks: list[tuple[str, tuple[Network | Family, Shape]]] = [*NETWORKS.items(), *FAMILIES.items()]
    return [
        network_case(name, network, shape, layout)
        for name, (network, shape) in networks
        for layout in ("contiguous", "channels_last")
        if layout == "contiguous" or len(shape) == 4
    ] + [
        Case(
            "fuse", f"{name}-small", SMALL, torch.float32, "contiguous", "training step", partial(_build_small, family)
        )
        for name, (family, _) in FAMILIES.items()
    ]


def _build_small(family: Family, case: Case) -> Workload:
    """A training step on one thread, in more rounds than a large network's.

    Checked on larger images: where a BatchNorm has two values a channel, the gradients of these are all rounding.
    """
    checked = build_step(family, replace(case, shape=(4, 3, 96, 96)))
    return replace(build_step(family, case), check=checked.check, threads=1, min_rounds=25, max_rounds=51)
