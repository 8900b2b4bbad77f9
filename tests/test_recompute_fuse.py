"""`fuse(model, recompute=True)`: the setting of a model, and what it does not change."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from recompute_case import assert_same, gradients, hooks_now, recomputed_by, small
from torch import Tensor, nn

import fusedtricks
from fusedtricks import _C, recompute


def test_a_fused_model_recomputes():
    model, x = small(), torch.randn(2, 3, 8, 8)
    plain = fusedtricks.fuse(model)
    fused = fusedtricks.fuse(model, recompute=True)
    assert "recompute" not in str(fusedtricks.report(plain))
    assert str(fusedtricks.report(fused)).endswith("recompute(depth=1)")
    expected = gradients(plain, plain(x).square().sum())
    for each in (fused, copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        loss = each(x).square().sum()
        found, times = recomputed_by(lambda loss=loss, each=each: gradients(each, loss))
        assert times == 1
        assert_same(found, expected)
    assert hooks_now() is None
    assert type(fused) is not nn.Sequential and fused.state_dict().keys() == model.state_dict().keys()


def test_the_setting_of_a_fused_model_can_be_changed():
    model, x = small(), torch.randn(2, 3, 8, 8)
    fused = fusedtricks.fuse(model, recompute=recompute(depth=0))
    assert fusedtricks.report(fused).recompute == "recompute(depth=0)"
    assert fusedtricks.fuse(fused, recompute=recompute(depth=0)) is fused
    other = fusedtricks.fuse(fused, recompute=recompute(depth=None))
    assert other is not fused and fusedtricks.report(other).recompute == "recompute(depth=None)"
    assert fusedtricks.report(fused).recompute == "recompute(depth=0)"
    assert fusedtricks.fuse(fused, inplace=True) is fused and not fusedtricks.report(fused).recompute
    _, times = recomputed_by(lambda: fused(x).sum().backward())
    assert times == 0


def test_it_is_taken_off_with_the_rest():
    fused = fusedtricks.fuse(small(), recompute=True)
    for stock in (fusedtricks.unfuse(fused), fusedtricks.to_stock(fused)):
        assert type(stock) is nn.Sequential and not any("fusedtricks" in name for name in vars(stock))


class Changes(nn.Module):
    """Changes what it has concatenated, which `torch.cat` allows."""

    def __init__(self, returns: bool) -> None:
        super().__init__()
        self.norm, self.conv, self.returns = nn.BatchNorm2d(3), nn.Conv2d(6, 3, 1), returns

    def forward(self, x: Tensor) -> Any:
        part = x + 1
        y = self.conv(torch.relu(self.norm(self.conv(torch.cat([part, x], 1))).repeat(1, 2, 1, 1)))
        return (y, part) if self.returns else y + part.mul_(2).sum()


@pytest.mark.parametrize("returns", [True, False])
def test_torchs_cat_stays_where_what_it_joins_may_change(returns):
    model, x = Changes(returns), torch.randn(2, 3, 8, 8)

    def loss(model: nn.Module) -> Tensor:
        y = model(x)
        return y[0].sum() + y[1].mul_(2).sum() if returns else y.sum()

    fused = fusedtricks.fuse(model)
    assert_same(gradients(model := fusedtricks.fuse(model, recompute=True), loss(model)), gradients(fused, loss(fused)))


def test_an_error_in_a_models_forward_ends_it():
    fused = fusedtricks.fuse(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()), recompute=True)
    with pytest.raises(ValueError):
        fused(torch.randn(1, 3, 1, 1))
    assert hooks_now() is None and _C.may_recompute()


@pytest.mark.parametrize("wrong", [1, "yes", None])
def test_fuse_takes_a_bool_or_a_context(wrong):
    with pytest.raises(TypeError, match=r"argument 'recompute' must be bool or fusedtricks\.recompute, not "):
        fusedtricks.fuse(small(), recompute=wrong)


def test_models_without_code_of_their_own():
    single = fusedtricks.fuse(nn.BatchNorm2d(3), recompute=True)
    assert not fusedtricks.report(single).recompute
    traced = torch.fx.symbolic_trace(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()))
    fused = fusedtricks.fuse(traced, recompute=True)
    assert "with fusedtricks.recompute()" in str(fusedtricks.report(fused))
    assert fused(torch.randn(2, 3, 4, 4)).shape == (2, 3, 4, 4)
