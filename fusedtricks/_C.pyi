from collections.abc import Sequence

from torch import Tensor

def batch_norm_act(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    act: str,
    act_args: list[float],
    training: bool,
    momentum: float | None,
    eps: float,
    /,
) -> Tensor: ...
def batch_norm_act_dropout(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    act: str,
    act_args: list[float],
    training: bool,
    momentum: float | None,
    eps: float,
    p: float,
    seed: int | None,
    /,
) -> Tensor: ...
def batch_norm_act_max_pool2d(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    act: str,
    act_args: list[float],
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
    training: bool,
    momentum: float | None,
    eps: float,
    /,
) -> Tensor: ...
def activation(input: Tensor, act: str, act_args: list[float], inplace: bool, /) -> Tensor: ...
def dropout(input: Tensor, p: float, mode: str, seed: int | None, inplace: bool, /) -> Tensor: ...
def act_dropout(
    input: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    act: str,
    act_args: list[float],
    p: float,
    seed: int | None,
    /,
) -> Tensor: ...
def drop_connect_linear(
    input: Tensor, weight: Tensor, bias: Tensor | None, p: float, seed: int | None, /
) -> Tensor: ...
def drop_connect_convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    p: float,
    seed: int | None,
    /,
) -> Tensor: ...
def feature_dropout(
    input: Tensor,
    residual: Tensor | None,
    mask_dims: int,
    p: float,
    mode: str,
    seed: int | None,
    inplace: bool,
    /,
) -> Tensor: ...
def fractional_max_pool(
    input: Tensor,
    kernel_size: Sequence[int],
    output_size: Sequence[int],
    samples: Tensor | None,
    seed: int | None,
    act: str,
    act_args: list[float],
    return_indices: bool,
    /,
) -> tuple[Tensor, Tensor]: ...
def check_monotone(act: str, act_args: list[float], /) -> None: ...
def add_samples(input: Tensor, rows: Tensor, index: Tensor, scale: float, /) -> Tensor: ...
def select_samples(input: Tensor, index: Tensor, scale: float, /) -> Tensor: ...
def branch_samples(input: Tensor, index: Tensor, /) -> tuple[Tensor, Tensor]: ...
def activations() -> list[tuple[str, list[tuple[str, float]]]]: ...
def philox(seed: int, offset: int, counter: int, /) -> list[int]: ...
