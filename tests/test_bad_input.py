"""Invalid arguments: same error class as stock, the message names the argument, and nothing changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hardware import generator_state

import fusedtricks.functional as ftF
import fusedtricks.nn as ftnn

NAN = float("nan")


def good() -> dict[str, Any]:
    """Arguments of a valid call."""
    return {
        "input": torch.randn(4, 3, 5),
        "running_mean": torch.zeros(3),
        "running_var": torch.ones(3),
        "num_batches_tracked": torch.tensor(0),
        "weight": torch.ones(3),
        "bias": torch.zeros(3),
        "residual": torch.randn(4, 3, 5),
        "training": True,
    }


BATCH_NORM_MISTAKES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "rank_1": ({"input": torch.randn(3), "residual": None}, IndexError, "input"),
    "rank_0": ({"input": torch.tensor(1.0), "residual": None}, IndexError, "input"),
    "input_no_tensor": ({"input": [[1.0]]}, TypeError, "input"),
    "weight_channels": ({"weight": torch.ones(4)}, RuntimeError, "weight"),
    "bias_channels": ({"bias": torch.ones(2)}, RuntimeError, "bias"),
    "running_mean_channels": ({"running_mean": torch.ones(4)}, RuntimeError, "running_mean"),
    "running_var_channels": ({"running_var": torch.ones(1)}, RuntimeError, "running_var"),
    "weight_rank": ({"weight": torch.ones(3, 1)}, RuntimeError, "weight"),
    "weight_dtype": ({"weight": torch.ones(3).double()}, RuntimeError, "weight"),
    "bias_integer": ({"bias": torch.ones(3, dtype=torch.int64)}, RuntimeError, "bias"),
    "running_mean_dtype": ({"running_mean": torch.zeros(3).half()}, RuntimeError, "running_mean"),
    "running_var_integer": ({"running_var": torch.ones(3, dtype=torch.int32)}, RuntimeError, "running_var"),
    "weight_no_tensor": ({"weight": [1.0, 1.0, 1.0]}, TypeError, "weight"),
    "residual_no_tensor": ({"residual": 1.0}, TypeError, "residual"),
    "residual_shape": ({"residual": torch.randn(4, 3, 1)}, RuntimeError, "residual"),
    "residual_rank": ({"residual": torch.randn(5)}, RuntimeError, "residual"),
    "residual_dtype": ({"residual": torch.randn(4, 3, 5).double()}, RuntimeError, "residual"),
    "residual_device": ({"residual": torch.randn(4, 3, 5, device="meta")}, RuntimeError, "residual"),
    "weight_device": ({"weight": torch.ones(3, device="meta")}, RuntimeError, "weight"),
    "bias_device": ({"bias": torch.ones(3, device="meta")}, RuntimeError, "bias"),
    "running_mean_device": ({"running_mean": torch.ones(3, device="meta")}, RuntimeError, "running_mean"),
    "running_var_device": ({"running_var": torch.ones(3, device="meta")}, RuntimeError, "running_var"),
    "half_of_the_statistics_mean": ({"running_var": None}, ValueError, "running_mean and running_var"),
    "half_of_the_statistics_var": ({"running_mean": None}, ValueError, "running_mean and running_var"),
    "evaluation_without_statistics": (
        {"running_mean": None, "running_var": None, "training": False},
        RuntimeError,
        "running_mean",
    ),
    "evaluation_without_variance": ({"running_var": None, "training": False}, RuntimeError, "running_var"),
    "one_value_per_channel": (
        {"input": torch.randn(1, 3), "residual": None},
        ValueError,
        r"Expected more than 1 value per channel when training, got input size .*\[1, 3\]",
    ),
    "one_value_per_channel_4d": (
        {"input": torch.randn(1, 3, 1, 1), "residual": None},
        ValueError,
        "more than 1 value per channel",
    ),
    "eps_zero": ({"eps": 0.0}, ValueError, "eps"),
    "eps_negative": ({"eps": -1e-5}, ValueError, "eps"),
    "eps_negative_in_evaluation": ({"eps": -1e-5, "training": False}, ValueError, "eps"),
    "activation_unknown": ({"act": "relo"}, ValueError, "relo.*leaky_relu.*softplus"),
    "activation_no_string": ({"act": torch.relu}, (TypeError, ValueError), "act"),
    "act_kwargs_unknown": ({"act": "leaky_relu", "act_kwargs": {"slope": 0.2}}, TypeError, "slope"),
    "act_kwargs_of_another": ({"act": "relu", "act_kwargs": {"alpha": 0.2}}, TypeError, "alpha"),
}


def on(device: torch.device, arguments: dict[str, Any]) -> dict[str, Any]:
    """Moves the arguments to the device, except tensors that are meant to be elsewhere."""
    moved = {k: v.to(device) for k, v in arguments.items() if isinstance(v, torch.Tensor) and not v.is_meta}
    return arguments | moved


def snapshot(arguments: dict[str, Any]) -> dict[str, torch.Tensor]:
    names = ("running_mean", "running_var", "num_batches_tracked")
    given = {name: arguments[name] for name in names if arguments.get(name) is not None}
    return {name: t.clone() for name, t in given.items() if t.device.type != "meta"}


@pytest.mark.parametrize("requires_grad", [False, True], ids=["plain", "requires_grad"])
@pytest.mark.parametrize(("change", "error", "message"), BATCH_NORM_MISTAKES.values(), ids=BATCH_NORM_MISTAKES)
def test_batch_norm_act(change, error, message, requires_grad, device):
    arguments = on(device, good() | change)
    x = arguments["input"]
    if requires_grad and isinstance(x, torch.Tensor) and x.is_floating_point():
        arguments["input"] = x.detach().clone().requires_grad_()
    before, generator = snapshot(arguments), generator_state(device)
    with pytest.raises(error, match=message):
        ftF.batch_norm_act(**arguments)
    assert torch.equal(generator_state(device), generator)
    torch.testing.assert_close(snapshot(arguments), before, rtol=0, atol=0)


def test_the_good_arguments_are_good(device):
    arguments = on(device, good())
    ftF.batch_norm_act(**arguments)
    assert arguments["num_batches_tracked"] == 1


class Unchanged:
    """Checks on exit that the generator and the tensor have not changed since entry."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor, self.values, self.state = tensor, tensor.clone(), generator_state(tensor.device)

    def __enter__(self) -> torch.Tensor:
        return self.tensor

    def __exit__(self, *_: object) -> None:
        assert torch.equal(self.tensor, self.values)
        assert torch.equal(generator_state(self.tensor.device), self.state)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("p", [-0.1, 1.1, NAN, float("inf")])
def test_dropout_probability(p, inplace, device):
    with Unchanged(torch.ones(9, device=device)) as x, pytest.raises(ValueError, match=r"probability.*between 0 and 1"):
        ftF.dropout(x, p, inplace=inplace)


def test_dropout_probability_is_checked_in_evaluation_too(device):
    with pytest.raises(ValueError, match="probability"):
        ftF.dropout(torch.ones(9, device=device), 1.5, training=False)


@pytest.mark.parametrize("p", [-0.1, 1.1, NAN])
def test_dropout_module_probability(p):
    with pytest.raises(ValueError, match="probability"):
        ftnn.Dropout(p)


DROPOUT_MISTAKES: dict[str, tuple[Callable[[torch.Tensor], Any], type[Exception], str]] = {
    "mode": (lambda x: ftF.dropout(x, 0.5, mode="inversed"), ValueError, "mode.*inversed"),
    "module_mode": (lambda _: ftnn.Dropout(0.5, mode="inversed"), ValueError, "mode.*inversed"),
    "no_tensor": (lambda _: ftF.dropout([1.0], 0.5), TypeError, "input"),
    "seed_no_integer": (lambda x: ftF.dropout(x, 0.5, seed=0.5), TypeError, "seed"),
}


@pytest.mark.parametrize(("call", "error", "message"), DROPOUT_MISTAKES.values(), ids=DROPOUT_MISTAKES)
def test_dropout(call, error, message, device):
    with Unchanged(torch.ones(9, device=device)) as x, pytest.raises(error, match=message):
        call(x)


@pytest.mark.parametrize("function", [ftF.dropout, ftF.leaky_relu], ids=["dropout", "leaky_relu"])
def test_in_place_on_memory_shared_by_elements(function, device):
    """As in stock, an expanded tensor cannot be written to."""
    shared = torch.ones(1, device=device).expand(9)
    with Unchanged(shared) as x, pytest.raises(RuntimeError, match="single memory location"):
        function(x, inplace=True)


def test_in_place_on_a_leaf(device):
    leaf = torch.ones(9, device=device, requires_grad=True)
    with Unchanged(leaf.detach()), pytest.raises(RuntimeError, match="leaf"):
        ftF.dropout(leaf, inplace=True)


ACTIVATION_MISTAKES: dict[str, tuple[Callable[[torch.Tensor], Any], type[Exception], str]] = {
    "unknown": (lambda x: ftF.activation(x, "swish"), ValueError, "swish.*leaky_relu.*softplus"),
    "parameter": (lambda x: ftF.activation(x, "elu", beta=1.0), TypeError, "beta"),
    "parameter_type": (lambda x: ftF.leaky_relu(x, "steep"), TypeError, "negative_slope"),
    "no_tensor": (lambda _: ftF.relu([1.0]), TypeError, "input"),
    "gelu_approximate": (lambda x: ftF.gelu(x, approximate="sinh"), RuntimeError, "approximate"),
}


@pytest.mark.parametrize(("call", "error", "message"), ACTIVATION_MISTAKES.values(), ids=ACTIVATION_MISTAKES)
def test_activation(call, error, message, device):
    with Unchanged(torch.ones(9, device=device)) as x, pytest.raises(error, match=message):
        call(x)


@pytest.mark.parametrize(
    ("rank", "shape"),
    [("1d", (2, 3, 4, 4)), ("1d", (3,)), ("2d", (2, 3, 4)), ("2d", (3, 4)), ("3d", (2, 3, 4, 4))],
)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_batch_norm_module_rank(rank, shape, training, device):
    module = getattr(ftnn, f"BatchNormAct{rank}")(3, device=device).train(training)
    before = {name: t.clone() for name, t in module.state_dict().items()}
    with pytest.raises(ValueError, match=rf"expected .* input \(got {len(shape)}D input\)"):
        module(torch.randn(shape, device=device))
    torch.testing.assert_close(dict(module.state_dict()), before, rtol=0, atol=0)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("shape", [(4, 2, 5), (1, 3)], ids=["channels", "one_value"])
def test_batch_norm_module_counts_no_failed_batch(shape, momentum, device):
    """Stock counts the batch before it raises; ours does not."""
    module = ftnn.BatchNormAct1d(3, momentum=momentum, device=device)
    before = {name: t.clone() for name, t in module.state_dict().items()}
    with pytest.raises((RuntimeError, ValueError)):
        module(torch.randn(shape, device=device))
    torch.testing.assert_close(dict(module.state_dict()), before, rtol=0, atol=0)


def test_batch_norm_module_activation():
    with pytest.raises(ValueError, match=r"relo.*leaky_relu"):
        ftnn.BatchNormAct2d(3, act="relo")
    with pytest.raises(TypeError, match="slope"):
        ftnn.BatchNormAct2d(3, act="leaky_relu", act_kwargs={"slope": 0.2})
