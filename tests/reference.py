"""Each op in a few lines of eager PyTorch: the specification that the kernels are compared with.

Uses `fusedtricks.eager`, which calls only stock `torch.nn.functional`; evaluated in float64 its error is negligible for
all dtypes under test. Dropout's mask is implemented again here, with Python integers.
"""

import math

import torch

from fusedtricks import eager

activation = eager.activation
batch_norm_act = eager.batch_norm_act
NAMES = tuple(eager.FORMULAS)


def philox(seed: int, offset: int, counter: int) -> tuple[int, int, int, int]:
    """One block of Philox4x32-10 (Salmon et al., SC 2011) with key = seed and counter words (counter, offset)."""
    low = 0xFFFFFFFF
    c = [counter & low, counter >> 32, offset & low, offset >> 32]
    k = [seed & low, seed >> 32 & low]
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [p1 >> 32 ^ c[1] ^ k[0], p1 & low, p0 >> 32 ^ c[3] ^ k[1], p0 & low]
        k = [k[0] + 0x9E3779B9 & low, k[1] + 0xBB67AE85 & low]
    return tuple(c)


def dropout_mask(numel: int, p: float, seed: int, offset: int = 0) -> torch.Tensor:
    """Element i is kept if word i % 4 of block i // 4 is at least p 2^32."""
    words = [word for block in range((numel + 3) // 4) for word in philox(seed, offset, block)]
    return torch.tensor([word >= p * 2**32 for word in words[:numel]], dtype=torch.bool)


def dropout(input: torch.Tensor, p: float, seed: int, mode: str = "inverted") -> torch.Tensor:
    """Dropout in training: dropped values are 0; kept ones are divided by the keep probability unless mode is classic.

    The keep probability follows from the threshold and is within 2^-32 of 1 - p. Alpha dropout (as in the SELU paper)
    uses the same probability.
    """
    return feature_dropout(input, input.dim(), p, seed, mode)


def feature_dropout(input: torch.Tensor, mask_dims: int, p: float, seed: int, mode: str = "inverted") -> torch.Tensor:
    """The same with one mask value for each index of the first `mask_dims` dimensions."""
    shape = input.shape[:mask_dims] + (1,) * (input.dim() - mask_dims)
    mask = dropout_mask(math.prod(shape), p, seed).view(shape)
    q = 1 - math.ceil(p * 2**32) / 2**32
    if mode == "alpha" and q:
        limit = -1.6732632423543772 * 1.0507009873554805
        a = (q + limit**2 * q * (1 - q)) ** -0.5
        return a * torch.where(mask, input, limit) - a * limit * (1 - q)
    return torch.where(mask, input / q if mode == "inverted" and q else input, 0.0)


def act_dropout(
    x: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    act: str,
    act_kwargs: dict[str, float],
    p: float,
    seed: int,
) -> torch.Tensor:
    y = dropout(activation(x if bias is None else x + bias, act, **act_kwargs), p, seed)
    return y if residual is None else y + residual
