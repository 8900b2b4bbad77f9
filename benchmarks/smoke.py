"""A small selection of the fused ops, on CUDA as on the CPU; made to be run under compute-sanitizer.

Tensors are made on the CPU, so that nearly all kernels that run are those of fusedtricks. With
PYTORCH_NO_CUDA_MEMORY_CACHING=1 each has an allocation of its own, and an access beside it is seen.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

# Behind the installed packages, so that a checkout's sources do not hide the built ones.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks.cuda_clock import obstacle
from fusedtricks import functional

# One channel, odd counts, fewer channels than a vector has, more than a block takes, several blocks.
SHAPES = ((4, 1, 7, 5), (3, 7, 9, 9), (2, 65, 7, 7), (4, 64, 28, 28), (5, 100), (300, 64), (2, 8, 3, 5, 5))
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Of the largest element of the tensor, for sums of a few thousand elements in the type's own rounding.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-3, torch.float64: 1e-9}

Results = dict[str, Tensor]


def main(argv: list[str] | None = None) -> int:
    """1 if an op gives other values on CUDA than on the CPU, 2 where there is no CUDA."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda" and (reason := obstacle()):
        print(f"smoke.py: {reason}", file=sys.stderr)
        return 2
    checked, wrong = 0, 0
    for name, dtype, run in _runs():
        expected, found = run("cpu"), run(arguments.device)
        for what, value in found.items():
            checked += 1
            error = (value.double() - expected[what].double()).abs().max().item()
            limit = TOLERANCES[dtype] * max(1.0, expected[what].double().abs().max().item())
            if not error <= limit:
                wrong += 1
                print(f"WRONG {name}: {what} is off by {error:.1e}", flush=True)
    print(f"{checked} results, {wrong} wrong")
    return 1 if wrong else 0


def _runs() -> Iterator[tuple[str, torch.dtype, Callable[[str], Results]]]:
    for shape in SHAPES:
        for dtype in DTYPES:
            for channels_last in (False, True) if len(shape) > 3 else (False,):
                name = f"{shape}, {dtype}, {'channels_last' if channels_last else 'contiguous'}"
                make = partial(_tensor, shape, dtype, channels_last)
                for residual in (False, True):
                    run = partial(_batch_norm, make, residual)
                    yield f"batch_norm{'_add' * residual}_relu {name}", dtype, run
                yield f"gelu {name}", dtype, partial(_elementwise, make, functional.gelu)
                yield f"dropout {name}", dtype, partial(_elementwise, make, partial(functional.dropout, seed=20))


def _tensor(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool, seed: int) -> Tensor:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    if channels_last:
        tensor = tensor.to(memory_format=torch.channels_last if len(shape) == 4 else torch.channels_last_3d)
    return tensor


def _batch_norm(make: Callable[[int], Tensor], residual: bool, device: str) -> Results:
    tensors = [make(seed).to(device).requires_grad_() for seed in range(1 + residual)]
    channels = tensors[0].shape[1]
    parameter_dtype = torch.float64 if tensors[0].dtype == torch.float64 else torch.float32
    parameters = [_tensor((channels,), parameter_dtype, False, seed).to(device).requires_grad_() for seed in (2, 3)]
    mean = torch.zeros(channels, dtype=parameter_dtype).to(device)
    var = torch.ones(channels, dtype=parameter_dtype).to(device)
    y = functional.batch_norm_act(tensors[0], mean, var, *parameters, *tensors[1:], act="relu", training=True)
    leaves = [*tensors, *parameters]
    gradients = torch.autograd.grad(y, leaves, make(4).to(device))
    names = ["output", *(f"gradient {i}" for i in range(len(leaves))), "running mean", "running variance"]
    return {name: t.detach().cpu() for name, t in zip(names, (y, *gradients, mean, var), strict=True)}


def _elementwise(make: Callable[[int], Tensor], function: Callable[[Tensor], Tensor], device: str) -> Results:
    x = make(0).to(device).requires_grad_()
    y = function(x)
    (gradient,) = torch.autograd.grad(y, x, make(4).to(device))
    return {"output": y.detach().cpu(), "gradient": gradient.detach().cpu()}


if __name__ == "__main__":
    sys.exit(main())
