"""Networks that other packages define, to be fused by `fusedtricks.fuse`. Nothing is downloaded."""

from typing import Any

from torch import Tensor, nn

CLASSES = 1000


class Logits(nn.Module):
    """An image classification model of Hugging Face's transformers that returns its logits as a tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).logits


def classifier(name: str, **settings: Any) -> nn.Module:
    """`transformers.<name>ForImageClassification`, in its default configuration unless settings are given."""
    import transformers

    transformers.logging.set_verbosity_error()
    configuration = getattr(transformers, f"{name}Config")(num_labels=CLASSES, **settings)
    return Logits(getattr(transformers, f"{name}ForImageClassification")(configuration))
