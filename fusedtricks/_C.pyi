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
def activation(input: Tensor, act: str, act_args: list[float], inplace: bool, /) -> Tensor: ...
def dropout(input: Tensor, p: float, scale_kept: bool, seed: int | None, inplace: bool, /) -> Tensor: ...
def activations() -> list[tuple[str, list[tuple[str, float]]]]: ...
def philox(seed: int, offset: int, counter: int, /) -> list[int]: ...
