"""Forked processes, where OpenMP's threads do not exist: every operator runs there, on one thread.

Stock's own operators on large tensors hang in such a child (pytorch/pytorch#17199), so it calls none of them.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks")

OPERATORS = """
import multiprocessing
import numpy
import torch
import fusedtricks.functional as F
import fusedtricks.nn as fnn

torch.set_num_threads(3)


def leaf(*shape, layout=torch.contiguous_format, dims=None):
    x = torch.randn(shape) if len(shape) < 4 else torch.randn(shape).contiguous(memory_format=layout)
    return (x if dims is None else x.transpose(*dims)).detach().requires_grad_()


IMAGES = [leaf(16, 32, 24, 24), leaf(16, 32, 24, 24, layout=torch.channels_last), leaf(16, 32, 24, 24, dims=(1, 3))]
OTHERS = [leaf(*x.shape) for x in IMAGES]
ROWS, WEIGHT, WIDE, FILTERS = leaf(512, 600), leaf(600, 600), leaf(2400, 600), leaf(32, 32, 3, 3)
FEW, BIAS = leaf(2, 600), leaf(600)
SMALL = leaf(64, 480)  # stock copies it on one thread
INDEX = torch.randperm(16)[:8]

CALLS = {f"{act} {x.stride()}": (F.activation, (x, act)) for act in F.ACTIVATIONS for x in (ROWS, IMAGES[2])}
CALLS["leaky_relu in place"] = (lambda x: F.leaky_relu(x.clone(), inplace=True), (SMALL,))
CALLS["dropout in place"] = (lambda x: F.dropout(x.clone(), inplace=True, seed=1), (SMALL,))
CALLS["second derivative"] = (lambda x: torch.autograd.grad(F.silu(x), x, x.detach(), create_graph=True)[0], (ROWS,))
for i, (x, r) in enumerate(zip(IMAGES, OTHERS)):
    CALLS |= {
        f"dropout {i}": (lambda x: F.dropout(x, seed=1), (x,)),
        f"dropout2d {i}": (lambda x: F.dropout2d(x, seed=1), (x,)),
        f"alpha_dropout {i}": (lambda x: F.alpha_dropout(x, 0.5, True, seed=1), (x,)),
        f"drop_path {i}": (lambda x, r: F.drop_path(x, 0.5, r, seed=1), (x, r)),
        f"batch_norm_act {i}": (lambda x, r: F.batch_norm_act(x, None, None, residual=r, training=True), (x, r)),
        f"batch_norm_act_dropout {i}": (lambda x: F.batch_norm_act(x, None, None, training=True, p=0.3, seed=1), (x,)),
        f"max_pool2d {i}": (
            lambda x: F.batch_norm_act_max_pool2d(x, None, None, kernel_size=2, training=True), (x,)
        ),
        f"fractional_max_pool2d {i}": (lambda x: F.fractional_max_pool2d(x, 2, 12, seed=1), (x,)),
        f"add_samples {i}": (lambda x, r: F.add_samples(x, F.select_samples(r, INDEX), INDEX, 2.0), (x, r)),
    }
CALLS |= {
    "act_dropout": (lambda x, b: F.act_dropout(x, b, act="gelu", seed=1), (ROWS, BIAS)),
    "drop_connect": (lambda x, w, b: F.drop_connect_linear(x, w, b, 0.3, seed=1), (ROWS, WEIGHT, BIAS)),
    "drop_connect, mostly weight": (lambda x, w: F.drop_connect_linear(x, w, p=0.3, seed=1), (FEW, WIDE)),
    "drop_connect_conv2d": (lambda x, w: F.drop_connect_conv2d(x, w, p=0.3, seed=1), (IMAGES[0], FILTERS)),
}

# What runs stock's operators, whose backward is stock's.
LINEAR, DROPPED = fnn.LinearActDropout(600, 600, p=0.0), fnn.DropConnectLinear(600, 600, act="gelu").eval()
ROW, SKIP = (fnn.StochasticDepth(torch.nn.Identity(), 0.5, mode).eval() for mode in ("row", "skip"))
FORWARDS = {
    "LinearActDropout": lambda: LINEAR(ROWS),
    "DropConnectLinear in evaluation": lambda: DROPPED(ROWS),
    "drop_connect_moments": lambda: F.drop_connect_moments(ROWS, WEIGHT)[1],
    "classic dropout in evaluation": lambda: F.dropout(IMAGES[0], training=False, mode="classic"),
    "drop_path in evaluation": lambda: F.drop_path(IMAGES[0], 0.3, OTHERS[0], training=False),
    "StochasticDepth in evaluation": lambda: ROW(IMAGES[0]),
    "StochasticDepth by skipping, in evaluation": lambda: SKIP(IMAGES[0]),
    "without a kernel": lambda: F.relu(INTEGERS),
}
INTEGERS = (ROWS.detach() * 10).long()
CALLS |= {name: (function, ()) for name, function in FORWARDS.items()}


def results(name):
    function, arguments = CALLS[name]
    y = function(*arguments)
    leaves = [x for x in arguments if isinstance(x, torch.Tensor)]
    if not leaves:
        return [y.detach().numpy()]
    return [t.detach().numpy() for t in (y, *torch.autograd.grad(y, leaves, y.detach()))]


def check(name, expected):
    for a, b in zip(results(name), expected, strict=True):
        numpy.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * abs(b).max())


EXPECTED = {name: results(name) for name in CALLS}
"""

CHILD = """
def child():
    for name in CALLS:
        print(name, flush=True)
        check(name, EXPECTED[name])
    assert torch.get_num_threads() == 3, "the setting is the program's"


process = multiprocessing.get_context("fork").Process(target=child)
process.start()
process.join(60)
print("hangs" if process.is_alive() else process.exitcode)
process.kill()
"""

WORKERS = """
class Everything(torch.utils.data.Dataset):
    def __len__(self):
        return len(CALLS)

    def __getitem__(self, i):
        name = list(CALLS)[i]
        check(name, EXPECTED[name])
        return i


loader = torch.utils.data.DataLoader(
    Everything(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60
)
assert [int(i) for i in loader] == list(range(len(CALLS)))
print(0)
"""


@pytest.mark.parametrize("script", {"process": CHILD, "workers": WORKERS}.items(), ids=lambda item: item[0])
def test_every_operator_runs_in_a_child(script):
    command = [sys.executable, "-c", OPERATORS + script[1]]
    run = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "0", f"{run.stdout[-300:]}\n{run.stderr}"
