"""What the ops answer in a process of its own, and in this one to compare with.

`python -m emulation.results FILE RUNS [PATTERN]` saves a list in FILE: for each of RUNS what `collect` answers, or the
text of an error. RUNS is a JSON list of objects, environment variables; PATTERN is a regular expression for calls.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from functools import cache, partial

import torch
from batch_norm_case import BatchNormCase, evaluate, make_case
from cases import LAYOUTS, channels_last, misaligned_channels_last
from torch import Tensor

from fusedtricks import _C
from fusedtricks.functional import activation, batch_norm_act, dropout

Results = dict[str, dict[str, Tensor]]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

# Most are of more elements a channel than one block takes, where there are multiprocessors for more.
BATCH_NORM_SHAPES = {
    "planes": ((4, 3, 107, 97), Tensor.contiguous),
    "rows_of_packs": ((3, 16, 53, 41), channels_last),
    "folded_rows": ((7, 5, 53, 41), channels_last),
    "rows_of_elements": ((3, 5, 29, 23), misaligned_channels_last),
    "planes_beyond_shared_memory": ((2, 3, 181, 173), Tensor.contiguous),
    "few_rows": ((3, 16, 13, 11), channels_last),
    "folded_few_rows_of_two_groups": ((5, 15, 7, 3), channels_last),
}
BATCH_NORM_KINDS = {
    "leaky_relu": {"act": "leaky_relu"},
    "residual_relu": {"act": "relu", "residual": True},
    "residual_silu": {"act": "silu", "residual": True},
    "evaluation": {"act": "gelu", "training": False},
    "dropout": {"act": "silu", "p": 0.3, "seed": 5},
}

ELEMENTWISE_SHAPES = {
    "vectors": (3, 16, 23, 16),
    "half_vectors": (3, 12, 11, 7),
    "pairs": (3, 6, 11, 7),
    "odd": (3, 5, 67, 31),
}


@cache
def batch_norm_case(dtype: str, shape: str, kind: str) -> BatchNormCase:
    size, layout = BATCH_NORM_SHAPES[shape]
    return make_case(size, DTYPES[dtype], param_dtype=torch.float32, layout=layout, **BATCH_NORM_KINDS[kind])


def batch_norm(dtype: str, shape: str, kind: str) -> dict[str, Tensor]:
    case = batch_norm_case(dtype, shape, kind)
    results = evaluate(batch_norm_act, case)
    if case.training:
        # In double, they tell in which order the elements were added up.
        none = (None,) * 6
        _, mean, rstd = torch.ops.fusedtricks.batch_norm_act(case.input, *none, "relu", [], True, 0.1, case.eps)
        results |= {"save_mean": mean, "save_rstd": rstd}
    return results


def elementwise(function: Callable[[Tensor], Tensor], shape: str, dtype: str, layout: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    size = ELEMENTWISE_SHAPES[shape]
    x = LAYOUTS[layout](torch.randn(size, generator=generator).to(DTYPES[dtype])).requires_grad_()
    y = function(x)
    (dx,) = torch.autograd.grad(y, x, LAYOUTS[layout](torch.randn(size, generator=generator).to(DTYPES[dtype])))
    return {"output": y.detach(), "grad_input": dx}


def mask(shape: str, dtype: str, layout: str) -> dict[str, Tensor]:
    results = elementwise(partial(dropout, p=0.3, seed=0x123456789ABCDEF), shape, dtype, layout)
    return {name: value != 0 for name, value in results.items()}


def calls() -> dict[str, Callable[[], dict[str, Tensor]]]:
    calls: dict[str, Callable[[], dict[str, Tensor]]] = {}
    for dtype in DTYPES:
        for shape in BATCH_NORM_SHAPES:
            for kind in BATCH_NORM_KINDS:
                calls[f"batch_norm-{dtype}-{shape}-{kind}"] = partial(batch_norm, dtype, shape, kind)
        for shape in ELEMENTWISE_SHAPES:
            for layout in ("contiguous", "channels_last", "misaligned", "misaligned_channels_last"):
                calls[f"mask-{dtype}-{shape}-{layout}"] = partial(mask, shape, dtype, layout)
                function = partial(activation, act="gelu")
                calls[f"activation-{dtype}-{shape}-{layout}"] = partial(elementwise, function, shape, dtype, layout)
    return calls


def collect(pattern: str = "") -> Results:
    torch.use_deterministic_algorithms(True, warn_only=True)  # an element that nobody writes is NaN
    try:
        return {name: call() for name, call in calls().items() if re.search(pattern, name)}
    finally:
        torch.use_deterministic_algorithms(False)


def main(path: str, runs: str, pattern: str = "") -> None:
    answers: list[Results | str] = []
    for environment in json.loads(runs):
        os.environ.update(environment)
        _C.reload_settings()
        try:
            answers.append(collect(pattern))
        except RuntimeError as error:
            answers.append(str(error))
    torch.save(answers, path)


if __name__ == "__main__":
    main(*sys.argv[1:])
