"""fuse on models from other packages, with random weights: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from fuse_case import STEPS, chains, image, train
from torch import nn

import fusedtricks

transformers = pytest.importorskip("transformers", reason="one of the test extras")
transformers.logging.set_verbosity_error()


def resnet(kind: str) -> nn.Module:
    sizes = {"embedding_size": 4, "hidden_sizes": [8, 16], "depths": [2, 2], "num_channels": 4}
    return transformers.ResNetForImageClassification(transformers.ResNetConfig(layer_type=kind, **sizes))


def regnet(kind: str) -> nn.Module:
    sizes = {"embedding_size": 4, "hidden_sizes": [8, 16], "depths": [1, 2], "groups_width": 4, "num_channels": 4}
    return transformers.RegNetForImageClassification(transformers.RegNetConfig(layer_type=kind, **sizes))


def mobilenet_v1() -> nn.Module:
    config = transformers.MobileNetV1Config(
        depth_multiplier=0.25, min_depth=4, num_channels=4, classifier_dropout_prob=0
    )
    return transformers.MobileNetV1ForImageClassification(config)


def mobilenet_v2() -> nn.Module:
    sizes = {"depth_multiplier": 0.1, "depth_divisible_by": 4, "min_depth": 4, "num_channels": 4}
    return transformers.MobileNetV2ForImageClassification(
        transformers.MobileNetV2Config(classifier_dropout_prob=0, **sizes)
    )


FAMILIES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet-basic": (lambda: resnet("basic"), 9),  # 4 blocks of 2, and the stem
    "resnet-bottleneck": (lambda: resnet("bottleneck"), 13),  # 4 blocks of 3, and the stem
    "regnet-x": (lambda: regnet("x"), 10),  # 3 blocks of 3, and the stem
    "regnet-y": (lambda: regnet("y"), 10),
    "mobilenet-v1": (mobilenet_v1, 27),  # 13 pairs, and the stem
    "mobilenet-v2": (mobilenet_v2, 45),  # 16 blocks of 2, the stem's 2, the last, and 10 additions
}


@pytest.mark.parametrize("name", FAMILIES)
def test_families(name):
    """The number of chains, three training steps, evaluation, and state_dict transfer in both directions."""
    make, expected = FAMILIES[name]
    stock = make().double().train()
    fused = fusedtricks.fuse(stock)
    assert chains(fused) == expected, fusedtricks.report(fused)
    inputs = [image(2, 4, 64, 64) for _ in range(STEPS)]
    actual = train(fused, inputs, lambda model, x: model(x).logits)
    expected_training = train(stock, inputs, lambda model, x: model(x).logits)
    # The last BatchNorms normalise only eight values per channel, which amplifies rounding.
    torch.testing.assert_close(actual, expected_training, rtol=1e-6, atol=1e-7)
    stock.load_state_dict(fused.state_dict())
    fused.load_state_dict(stock.state_dict())
    assert type(fusedtricks.unfuse(fused).base_model) is type(stock.base_model)
    assert fused(pixel_values=inputs[0], return_dict=False)[0].shape == stock(inputs[0]).logits.shape
