"""One call of `batch_norm_act` as data, evaluated with the fused op and with the reference in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from cases import distance_to_kinks, kinks
from reference import batch_norm_act as reference_batch_norm_act
from rounding import HALF_TYPES, assert_rounds_to
from torch import Tensor

from fusedtricks.functional import batch_norm_act

DIFFERENTIABLE = ("input", "weight", "bias", "residual")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
MARGIN = 1e-5  # distance from a kink: ten times the fp32 error of a normalised value


@dataclass(frozen=True)
class BatchNormCase:
    input: Tensor
    grad_output: Tensor
    running_mean: Tensor | None = None
    running_var: Tensor | None = None
    num_batches_tracked: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    residual: Tensor | None = None
    act: str = "relu"
    act_kwargs: dict[str, float] = field(default_factory=dict)
    training: bool = True
    momentum: float | None = 0.1
    eps: float = 1e-5
    p: float = 0.0
    seed: int | None = None

    def options(self) -> dict[str, Any]:
        names = ("act", "act_kwargs", "training", "momentum", "eps", *(("p", "seed") if self.p else ()))
        return {name: getattr(self, name) for name in names}

    def tensors(self, names: Sequence[str]) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def map(self, change: Callable[[Tensor], Tensor]) -> BatchNormCase:
        """The case with `change` applied to every tensor; keeps the strides and storage that it returns."""
        return replace(self, **{k: change(v) for k, v in vars(self).items() if isinstance(v, Tensor)})

    def in_double(self) -> BatchNormCase:
        return self.map(lambda t: t.detach().cpu().double() if t.is_floating_point() else t.cpu())


def make_case(
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    *,
    param_dtype: torch.dtype | None = None,
    layout: Callable[[Tensor], Tensor] = Tensor.contiguous,
    residual: bool | Callable[[Tensor], Tensor] = False,
    affine: bool = True,
    track: bool = True,
    margin: float = MARGIN,
    device: torch.device | str = "cpu",
    **options: Any,
) -> BatchNormCase:
    """Normally distributed data whose pre-activations are not close to the activation's kinks.

    Args:
        param_dtype: dtype of weight, bias and running statistics; `dtype` by default.
        layout: of input and residual, unless `residual` is itself a layout.
        margin: smallest distance of a pre-activation from a kink.
    """
    param_dtype = param_dtype or dtype
    residual_layout = residual if callable(residual) else layout
    channels = shape[1]
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)

        def normal(*size: int, generator: torch.Generator = generator) -> Tensor:
            return torch.randn(size, generator=generator).to(device)

        case = BatchNormCase(
            input=layout((2 * normal(*shape) + 0.5).to(dtype)),
            grad_output=normal(*shape).to(dtype),
            running_mean=normal(channels).to(param_dtype) if track else None,
            running_var=(normal(channels).abs() + 0.5).to(param_dtype) if track else None,
            num_batches_tracked=torch.tensor(3, device=device) if track else None,
            weight=(0.3 * normal(channels) + 1).to(param_dtype) if affine else None,
            bias=normal(channels).to(param_dtype) if affine else None,
            residual=residual_layout(normal(*shape).to(dtype)) if residual else None,
            **options,
        )
        if case.input.numel() == 0 or not kinks(case.act, case.act_kwargs):
            return case
        if distance_to_kinks(pre_activation(case), case.act, case.act_kwargs) > margin:
            return case
    raise AssertionError(f"no data {margin} away from the kinks of {options} in 100 tries")


def pre_activation(case: BatchNormCase) -> Tensor:
    case = replace(case.in_double(), act="identity", act_kwargs={}, p=0.0)
    return evaluate(reference_batch_norm_act, case, [])["output"]


def evaluate(
    function: Callable[..., Tensor], case: BatchNormCase, wanted: Sequence[str] | None = None
) -> dict[str, Tensor]:
    """Output, gradients of the wanted leaves (all by default) and the statistics afterwards, by name."""
    leaves = {name: t.detach() for name, t in case.tensors(DIFFERENTIABLE).items()}
    wanted = [name for name in (DIFFERENTIABLE if wanted is None else wanted) if name in leaves]
    for name in wanted:
        leaves[name].requires_grad_()
    statistics = {name: t.clone() for name, t in case.tensors(STATISTICS).items()}
    arguments = {"running_mean": None, "running_var": None, **leaves, **statistics}
    output = function(**arguments, **case.options())
    assert output.requires_grad == bool(wanted)
    grads = torch.autograd.grad(output, [leaves[name] for name in wanted], case.grad_output) if wanted else []
    return {
        "output": output.detach(),
        **{f"grad_{name}": grad for name, grad in zip(wanted, grads, strict=True)},
        **statistics,
    }


def fused(case: BatchNormCase, wanted: Sequence[str] | None = None) -> dict[str, Tensor]:
    return evaluate(batch_norm_act, case, wanted)


def reference(case: BatchNormCase, wanted: Sequence[str] | None = None) -> dict[str, Tensor]:
    return evaluate(reference_batch_norm_act, case.in_double(), wanted)


def magnitudes(case: BatchNormCase) -> dict[str, float]:
    """By name, the size of the terms that each result sums, to which its rounding errors are relative.

    Gradients and means can cancel (the gradient for two samples is almost zero), so their own size does not bound
    their error. A sum over n elements has terms of random sign, so its rounding error grows like sqrt(n).
    """
    x = case.input.detach().cpu().double()
    dims = [d for d in range(x.dim()) if d != 1]
    var = x.var(dims, unbiased=False) if case.training else case.running_var.cpu().double()
    rstd = (var + case.eps).rsqrt().max().item()
    weight = 1.0 if case.weight is None else case.weight.abs().max().item()
    dy = case.grad_output.abs().max().item() * max(1.0, *(abs(v) for v in case.act_kwargs.values()), 1.76)
    dy /= 1 - case.p
    terms = max(x.numel() // x.shape[1], 1) ** 0.5
    return {
        "running_mean": x.abs().max().item(),
        "grad_input": 2 * weight * rstd * dy,
        "grad_weight": 4 * terms * dy,
        "grad_bias": terms * dy,
        "grad_residual": dy,
    }


def assert_matches_reference(case: BatchNormCase, wanted: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Checks output, gradients and statistics of the fused op, and returns them."""
    actual, expected = fused(case, wanted), reference(case, wanted)
    assert actual.keys() == expected.keys()
    scales = magnitudes(case)
    # With a residual, backward may compute the derivative from the result, which was rounded to a half type.
    read_off_result = case.residual is not None and case.input.dtype in HALF_TYPES
    inexact = 2 * torch.finfo(case.input.dtype).eps if read_off_result else 0.0
    for name, value in expected.items():
        if not value.is_floating_point():
            assert torch.equal(actual[name].cpu(), value), name
            continue
        model = case.input if name == "output" else getattr(case, name.removeprefix("grad_"))
        assert actual[name].dtype is model.dtype, f"{name} is {actual[name].dtype}"
        slack = inexact if name.startswith("grad_") else 0.0
        assert_rounds_to(actual[name], value, scale=scales.get(name), inexact=slack, name=name)
    return actual
