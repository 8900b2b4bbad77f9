"""Whether two builds of fusedtricks give the same bits.

`bits.py record FILE` runs a corpus of calls (shapes, dtypes, memory formats, activations) with the package that Python
finds, and writes a digest of every result and gradient. `bits.py compare OLD NEW` names the cases that differ:

    PYTHONPATH=old python benchmarks/bits.py record old.json
    PYTHONPATH=new python benchmarks/bits.py record new.json
    python benchmarks/bits.py compare old.json new.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Planes shorter and longer than a vector and a task, few and many channels, rows that end within a vector.
SHAPES = (
    (7, 13),
    (1031, 33),
    (5, 3, 7),
    (3, 5, 7, 11),
    (2, 16, 8, 8),
    (331, 9, 5, 5),
    (3, 17, 16, 19),
    (2, 3, 4, 3, 5),
)
LARGE = (4, 64, 56, 56)
ACTIVATIONS: tuple[tuple[str, dict[str, float]], ...] = (
    *((name, {}) for name in ("identity", "relu", "relu6", "leaky_relu", "elu", "selu", "gelu", "gelu_tanh")),
    *((name, {}) for name in ("sigmoid", "tanh", "silu", "mish", "hardswish", "softplus")),
    ("leaky_relu", {"negative_slope": -0.5}),
    ("elu", {"alpha": -0.5}),
    ("softplus", {"beta": 2.0, "threshold": 3.0}),
)
Call = Callable[..., Any]


def main(argv: list[str] | None = None) -> int:
    """Records, or compares: 1 if any case differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("record").add_argument("file", type=Path)
    compare = commands.add_parser("compare")
    compare.add_argument("old", type=Path)
    compare.add_argument("new", type=Path)
    arguments = parser.parse_args(argv)
    if arguments.command == "record":
        digests = {name: _digest(call, inputs) for name, call, inputs in _corpus()}
        arguments.file.write_text(json.dumps(digests, indent=0))
        print(f"{len(digests)} cases")
        return 0
    return _compare(json.loads(arguments.old.read_text()), json.loads(arguments.new.read_text()))


def _compare(old: dict[str, str], new: dict[str, str]) -> int:
    different = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    print(*different, sep="\n")
    print(f"{len(old)} and {len(new)} cases, {len(different)} differ")
    return 1 if different else 0


def _random(shape: tuple[int, ...], dtype: torch.dtype, layout: str, seed: int) -> Tensor:
    t = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    return t.movedim(1, -1).contiguous().movedim(-1, 1) if layout == "channels_last" and t.dim() > 2 else t


def _digest(call: Call, inputs: list[Tensor]) -> str:
    """Of the outputs, of all gradients, and of the inputs that the call wrote to."""
    leaves = [t.clone().requires_grad_(t.is_floating_point()) for t in inputs]
    outputs = call(*leaves)
    outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
    differentiable = [t for t in outputs if t.requires_grad]
    cotangents = [_random(tuple(t.shape), t.dtype, "", 99).reshape(t.shape) for t in differentiable]
    wanted = [t for t in leaves if t.requires_grad]
    gradients = torch.autograd.grad(differentiable, wanted, cotangents, allow_unused=True) if differentiable else []
    digest = hashlib.sha256()
    for t in (*outputs, *gradients, *leaves):
        if t is not None:
            digest.update(str((tuple(t.shape), t.stride(), t.dtype)).encode())
            digest.update(t.detach().contiguous().view(torch.uint8).numpy().tobytes() if t.numel() else b"")
    return digest.hexdigest()


def _corpus() -> Iterator[tuple[str, Call, list[Tensor]]]:
    for layout in ("contiguous", "channels_last"):
        for dtype in DTYPES:
            for shape in SHAPES:
                for name, call, inputs in _of_shape(shape, dtype, layout, ACTIVATIONS):
                    yield f"{name}/{shape}/{dtype}/{layout}", call, inputs
            for name, call, inputs in _of_shape(LARGE, dtype, layout, ACTIVATIONS[:4:3]):
                yield f"{name}/{LARGE}/{dtype}/{layout}", call, inputs


def _of_shape(
    shape: tuple[int, ...], dtype: torch.dtype, layout: str, activations: tuple[tuple[str, dict[str, float]], ...]
) -> Iterator[tuple[str, Call, list[Tensor]]]:
    from fusedtricks import functional as F

    x, residual = (_random(shape, dtype, layout, seed) for seed in (1, 2))
    weight, bias = (_random((shape[1],), dtype, "", seed) for seed in (3, 4))
    for act, kwargs in activations:
        name = f"{act}{kwargs or ''}"
        yield f"activation/{name}", lambda x, a=act, k=kwargs: F.activation(x, a, **k), [x]
        for training in (True, False):
            yield from _batch_norms(F, name, act, kwargs, training, [x, weight, bias, residual])
        yield (
            f"act_dropout/{name}",
            lambda x, r, a=act, k=kwargs: F.act_dropout(x, None, r, act=a, act_kwargs=k, p=0.3, seed=5),
            [x, residual],
        )
    for mode in ("inverted", "classic"):
        yield f"dropout/{mode}", lambda x, m=mode: F.dropout(x, 0.3, seed=5, mode=m), [x]
    yield "alpha_dropout", lambda x: F.alpha_dropout(x, 0.3, True, seed=5), [x]
    yield "drop_path", lambda x, r: F.drop_path(x, 0.3, r, seed=5), [x, residual]
    yield "feature_alpha_dropout", lambda x: F.feature_alpha_dropout(x, 0.3, True, seed=5), [x]
    index = torch.arange(0, shape[0], 2)
    yield "samples", lambda x, r: F.add_samples(x, F.select_samples(r, index), index, 1.5), [x, residual]
    if len(shape) == 4:
        yield from _pools(F, [x, weight, bias])
    if len(shape) == 2:
        weights = _random((17, shape[1]), dtype, "", 6)
        yield "drop_connect", lambda x, w: F.drop_connect_linear(x, w, None, 0.3, seed=5), [x, weights]


def _batch_norms(
    F: Any, name: str, act: str, kwargs: dict[str, float], training: bool, inputs: list[Tensor]
) -> Iterator[tuple[str, Call, list[Tensor]]]:
    channels, dtype = inputs[1].shape[0], inputs[0].dtype

    def call(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None, p: float = 0.0) -> Any:
        mean, var = torch.zeros(channels, dtype=dtype), torch.ones(channels, dtype=dtype)
        y = F.batch_norm_act(
            *(x, mean, var, weight, bias, residual), act=act, act_kwargs=kwargs, training=training, p=p, seed=5
        )
        return y, mean, var

    mode = "training" if training else "evaluation"
    yield f"batch_norm_act/{name}/{mode}", call, inputs[:3]
    yield f"batch_norm_act/{name}/{mode}/residual", call, inputs
    if training:
        yield f"batch_norm_act/{name}/dropout", partial(call, p=0.3), inputs[:3]
        yield f"batch_norm_act/{name}/residual, dropout", partial(call, p=0.3), inputs


def _pools(F: Any, inputs: list[Tensor]) -> Iterator[tuple[str, Call, list[Tensor]]]:
    for act in ("relu", "gelu"):
        yield (
            f"max_pool/{act}",
            lambda x, w, b, a=act: F.batch_norm_act_max_pool2d(
                x, None, None, w, b, kernel_size=3, stride=2, padding=1, act=a, training=True
            ),
            inputs,
        )
    for act in ("identity", "elu"):
        yield (
            f"fractional_max_pool/{act}",
            lambda x, a=act: F.fractional_max_pool2d(x, 2, output_ratio=0.6, act=a, seed=5),
            inputs[:1],
        )


if __name__ == "__main__":
    sys.exit(main())
