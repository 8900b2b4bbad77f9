"""The handwritten digits that come with scikit-learn, as normalised image tensors."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

SIZE = 32
CLASSES = 10


@dataclass(frozen=True)
class Digits:
    """Images (n, 1, SIZE, SIZE), with mean 0 and standard deviation 1 over the training set, and labels (n,)."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_digits(limit: int | None = None, seed: int = 0) -> Digits:
    """The 1797 digits of 8 x 8 pixels, enlarged to SIZE x SIZE; a fifth of each class is used for testing.

    Args:
        limit: keep only this many training images.
        seed: for the split into training and test images.
    """
    from sklearn.datasets import load_digits as load
    from sklearn.model_selection import train_test_split

    pixels, labels = load(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8)
    images = F.interpolate(images, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    targets = torch.tensor(labels)
    train, test = train_test_split(range(len(targets)), test_size=0.2, stratify=labels, random_state=seed)
    train = train[:limit]
    mean, std = (
        images[train].mean(dim=(0, 2, 3), keepdim=True),
        images[train].std(dim=(0, 2, 3), keepdim=True),
    )
    images = (images - mean) / std
    return Digits(images[train], targets[train], images[test], targets[test])
