"""Checks a small selection of the fused ops on a device, with the check of the benchmarks.

It is made to be run under compute-sanitizer: tensors are made on the CPU and references computed there, so that nearly
all kernels that run are those of fusedtricks. With PYTORCH_NO_CUDA_MEMORY_CACHING=1 each tensor has an allocation of
its own, and an access beside it is seen.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

# Behind the installed packages, so that a checkout's sources do not hide the built ones.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks.batch_norm_ops import batch_norm
from benchmarks.check import Arguments, Mismatch, check
from benchmarks.cuda_clock import obstacle
from benchmarks.dropout_ops import DROPOUT
from benchmarks.elementwise_ops import activation
from benchmarks.op import Op, Shape

# One channel, odd counts, fewer channels than a vector has, more than a block takes, several blocks.
SHAPES = ((4, 1, 7, 5), (3, 7, 9, 9), (2, 65, 7, 7), (4, 64, 28, 28), (5, 100), (300, 64), (2, 8, 3, 5, 5))
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
OPS = (batch_norm("relu"), batch_norm("relu", residual=True), activation("gelu"), DROPOUT)


def main(argv: list[str] | None = None) -> int:
    """1 if an op gives wrong values, 2 if there is no CUDA to check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda" and (reason := obstacle()):
        print(f"smoke.py: {reason}", file=sys.stderr)
        return 2
    checked, wrong = 0, 0
    for op, shape, dtype, memory_format in _trials():
        checked += 1
        try:
            _check(op, shape, dtype, memory_format, arguments.device)
        except Mismatch as mismatch:
            wrong += 1
            print(f"WRONG {op.name} {shape}, {dtype}, {memory_format}: {mismatch}", flush=True)
    print(f"{checked} calls checked, {wrong} wrong")
    return 1 if wrong else 0


def _trials() -> Iterator[tuple[Op, Shape, torch.dtype, torch.memory_format]]:
    channels_last = {4: (torch.channels_last,), 5: (torch.channels_last_3d,)}
    for shape in SHAPES:
        for dtype in DTYPES:
            for memory_format in (torch.contiguous_format, *channels_last.get(len(shape), ())):
                for op in OPS:
                    yield op, shape, dtype, memory_format


def _check(op: Op, shape: Shape, dtype: torch.dtype, memory_format: torch.memory_format, device: str) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(shape).to(dtype).contiguous(memory_format=memory_format) for _ in range(op.inputs)]
    grad_output = torch.randn(shape).to(dtype).contiguous(memory_format=memory_format)
    _, fused = op.make(shape)
    if isinstance(fused, torch.nn.Module):
        fused.to(torch.float64 if dtype == torch.float64 else torch.float32).to(device)
    arguments = Arguments([x.to(device) for x in inputs], grad_output=grad_output.to(device))
    check(fused, op.reference, arguments, memory_format, op.flips, reference_device="cpu")


if __name__ == "__main__":
    sys.exit(main())
