"""Dropout: published Philox vectors, masks equal to pure Python's, their distribution, use of generators."""

from __future__ import annotations

import math

import pytest
import reference
import torch
from cases import LAYOUTS, STREAMED_SHAPES, each_dtype
from hardware import generator_state
from rounding import assert_rounds_to
from torch.utils.checkpoint import checkpoint

from fusedtricks import _C
from fusedtricks.functional import dropout

P_VALUES = [0.5, 0.1, 0.875, 1 / 3]
TWO_32 = 2**32


def words(hexadecimal: str) -> tuple[int, ...]:
    return tuple(int(word, 16) for word in hexadecimal.split())


# Random123's kat_vectors, philox4x32 with 10 rounds: counter, key, result.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize("philox", [_C.philox, reference.philox], ids=["cpp", "reference"])
@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_known_answers(philox, counter, key, answer):
    c, k = words(counter), words(key)
    block = philox(k[0] | k[1] << 32, c[2] | c[3] << 32, c[0] | c[1] << 32)
    assert tuple(int(word) for word in block) == words(answer)


def reference_mask(shape: tuple[int, ...], p: float, seed: int) -> torch.Tensor:
    return torch.as_tensor(reference.dropout_mask(math.prod(shape), p, seed)).bool().view(shape)


def mask_of(shape: tuple[int, ...], p: float, seed: int, dtype=torch.float32, device="cpu") -> torch.Tensor:
    return dropout(torch.ones(shape, dtype=dtype, device=device), p, seed=seed).cpu() != 0


SHAPES = {
    "vector_tail": (1037,),
    "shorter_than_a_block": (3,),
    "matrix": (37, 53),
    "odd_positions": (3, 5, 7),
    "4d": (3, 5, 7, 11),
    "4d_positions_multiple_of_four": (2, 8, 4, 8),
    "5d": (2, 3, 4, 3, 5),
    "more_than_one_thread_takes": (7, 3, 67, 71),
}


@pytest.mark.each_isa
@pytest.mark.parametrize("p", P_VALUES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_mask_is_the_reference_mask(shape, p, device):
    seed = 0x123456789ABCDEF
    assert torch.equal(mask_of(shape, p, seed, device=device), reference_mask(shape, p, seed))


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63), 2**32])
def test_any_64_bit_seed(seed, device):
    assert torch.equal(mask_of((257,), 0.5, seed, device=device), reference_mask((257,), 0.5, seed % 2**64))


@pytest.mark.each_isa
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("shape", [(7, 13), (5, 3, 17), (3, 6, 7, 9), (2, 8, 4, 8), (2, 3, 4, 3, 5)], ids=str)
def test_mask_follows_the_logical_index_in_every_layout(shape, layout, device):
    x = layout(torch.rand(shape).to(device) + 1)
    y = dropout(x, 0.4, seed=5)
    dy = layout(torch.rand(shape).to(device) + 1)
    leaf = x.detach().requires_grad_()
    (dx,) = torch.autograd.grad(dropout(leaf, 0.4, seed=5), leaf, dy)
    mask = reference_mask(shape, 0.4, 5).to(device)
    assert torch.equal(y != 0, mask) and torch.equal(dx != 0, mask)
    torch.testing.assert_close(y, x * mask / 0.6)
    torch.testing.assert_close(dx, dy * mask / 0.6)


@pytest.mark.each_isa
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", STREAMED_SHAPES, ids=["float32", "bfloat16"])
def test_larger_than_the_caches(dtype, layout, device):
    """Compared with the reference at ten thousand positions only, because the reference is slow pure Python."""
    shape = STREAMED_SHAPES[dtype]
    x = LAYOUTS[layout](torch.ones(shape, dtype=dtype, device=device)).requires_grad_()
    y = dropout(x, 0.5, seed=3)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert torch.equal(dx, y)
    kept = y.detach().cpu().flatten() != 0
    assert torch.equal(y.detach().cpu().flatten(), 2 * kept.to(dtype))
    for i in [0, len(kept) - 1, *torch.randint(len(kept), (10_000,)).tolist()]:
        assert kept[i] == (reference.philox(3, 0, i // 4)[i % 4] >= TWO_32 // 2), i
    # The same mask for every layout.
    assert torch.equal(kept, mask_of((len(kept),), 0.5, seed=3, device=device))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_output_and_gradient_keep_the_memory_format(memory_format, device):
    x = torch.randn(2, 6, 5, 7, device=device).to(memory_format=memory_format).requires_grad_()
    y = dropout(x, 0.5)
    (dx,) = torch.autograd.grad(y, x, torch.randn_like(y))
    assert y.is_contiguous(memory_format=memory_format) and dx.is_contiguous(memory_format=memory_format)


@pytest.mark.each_isa
@each_dtype
@pytest.mark.parametrize("mode", ["inverted", "classic"])
def test_values_in_every_dtype(mode, dtype, device):
    """The same mask for all dtypes, and one rounding at the store."""
    x = torch.randn(33, 61, device=device).to(dtype).requires_grad_()
    dy = torch.randn(33, 61, device=device).to(dtype)
    y = dropout(x, 0.3, seed=9, mode=mode)
    (dx,) = torch.autograd.grad(y, x, dy)
    for actual, source in ((y, x), (dx, dy)):
        assert actual.dtype is dtype
        expected = reference.dropout(source.detach().cpu().double(), 0.3, 9, mode=mode)
        assert_rounds_to(actual, torch.as_tensor(expected), scale=0.0 if mode == "classic" else None)


@pytest.mark.parametrize("shape", [(257, 4), (3, 5, 67, 71)], ids=str)
def test_same_mask_for_any_number_of_threads(shape, restore_threads):
    masks = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        masks.append(mask_of(shape, 0.5, seed=11))
    assert all(torch.equal(mask, masks[0]) for mask in masks)


def binomial_z(kept: int, n: int, q: float) -> float:
    """Deviation of a count from its mean in standard deviations: above 5 about once in two million."""
    return abs(kept - n * q) / math.sqrt(n * q * (1 - q))


@pytest.mark.parametrize("p", [*P_VALUES, 0.01, 0.999])
def test_moments_of_the_mask(p):
    n = 1_000_000
    for seed in range(3):
        mask = mask_of((n,), p, seed)
        q = 1 - p
        assert binomial_z(int(mask.sum()), n, q) < 5
        # Disjoint pairs: within a Philox block, across two blocks, and one row apart.
        rows = mask.view(-1, 2, 1000)
        for a, b in ((mask[::2], mask[1::2]), (mask[3::8], mask[4::8]), (rows[:, 0], rows[:, 1])):
            assert binomial_z(int((a & b).sum()), a.numel(), q * q) < 5


def test_masks_of_neighbouring_seeds_are_independent():
    n = 1_000_000
    masks = [mask_of((n,), 0.5, seed) for seed in (0, 1, 2, 2**32)]
    for i, a in enumerate(masks):
        for b in masks[:i]:
            assert binomial_z(int((a == b).sum()), n, 0.5) < 5


@pytest.mark.parametrize("p", [*P_VALUES, 1e-3, 1e-9, 1e-12, 0.999])
def test_expectation_is_the_input(p):
    """No bias: the scale times the keep probability given by the 32-bit threshold is one."""
    scale = dropout(torch.ones(100_000, dtype=torch.float64), p, seed=1).max().item()
    kept = 1 - math.ceil(p * TWO_32) / TWO_32
    assert math.isclose(scale * kept, 1, rel_tol=1e-12)
    assert abs(kept - (1 - p)) <= 1 / TWO_32


@pytest.mark.parametrize("p", [1 - 2**-33, math.nextafter(1, 0)])
def test_p_one_rounding_below_one_drops_all(p, device):
    """The threshold is 2^32: nothing is kept, and the scale 2^32 / 0 must not turn zeros into NaN."""
    x = torch.randn(257, device=device, requires_grad=True)
    y = dropout(x, p, seed=1)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert not y.any() and not dx.any()


def test_p_one_rounding_above_zero(device):
    """Threshold 1: one element in 2^32 is dropped, none of these."""
    x = torch.randn(4099, device=device)
    torch.testing.assert_close(dropout(x, math.nextafter(0, 1), seed=1), x)


def test_p_zero_is_the_identity(device):
    x = torch.randn(257, device=device, requires_grad=True)
    y = dropout(x, 0.0)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(y, x) and torch.equal(dx, torch.ones_like(x))


@pytest.mark.parametrize("special", [1.0, float("inf"), float("nan")])
def test_p_one_is_zero(special, device):
    """The result and the gradient are zero for any input: selected, not multiplied by 0."""
    x = torch.full((257,), special, device=device, requires_grad=True)
    y = dropout(x, 1.0)
    (dx,) = torch.autograd.grad(y, x, torch.full_like(y, special))
    assert torch.equal(y, torch.zeros_like(y)) and torch.equal(dx, torch.zeros_like(x))


def test_evaluation_is_the_identity(device):
    x = torch.randn(257, device=device)
    assert torch.equal(dropout(x, 0.5, training=False), x)
    assert torch.equal(dropout(x.clone(), 0.5, training=False, inplace=True), x)


def test_classic_scales_in_evaluation_instead(device):
    x = torch.randn(257, device=device, requires_grad=True)
    y = dropout(x, 0.3, seed=2, mode="classic")
    mask = reference_mask((257,), 0.3, 2).to(device)
    assert torch.equal(y, x * mask)
    y = dropout(x, 0.3, training=False, mode="classic")
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    torch.testing.assert_close(y, 0.7 * x)
    torch.testing.assert_close(dx, torch.full_like(x, 0.7))


def test_classic_at_the_ends(device):
    x = torch.randn(257, device=device)
    for training in (True, False):
        assert torch.equal(dropout(x, 0.0, training, mode="classic"), x)
        assert not dropout(x, 1.0, training, mode="classic").any()


@pytest.mark.parametrize("mode", ["inverted", "classic"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_in_place(training, mode, device):
    x = torch.randn(5, 67, device=device, requires_grad=True)
    dy = torch.randn(5, 67, device=device)
    expected = dropout(x, 0.4, training, seed=3, mode=mode)
    h = x * 1
    y = dropout(h, 0.4, training, inplace=True, seed=3, mode=mode)
    assert y.data_ptr() == h.data_ptr()
    assert torch.equal(y, expected)
    assert torch.equal(torch.autograd.grad(y, x, dy)[0], torch.autograd.grad(expected, x, dy)[0])


def test_in_place_at_p_one(device):
    h = torch.full((5,), float("nan"), device=device)
    assert dropout(h, 1.0, inplace=True) is h and not h.any()


@pytest.mark.parametrize("layout", ["channels_last", "sliced", "strided", "misaligned"])
def test_in_place_in_every_layout(layout, device):
    x = LAYOUTS[layout](torch.rand(3, 6, 7, 9).to(device) + 1)
    expected = dropout(x, 0.4, seed=5)
    dropout(x, 0.4, inplace=True, seed=5)
    assert torch.equal(x, expected)


def test_in_place_on_a_view_leaves_the_rest(device):
    base = torch.ones(6, 8, device=device)
    dropout(base[:, 1::2], 0.9, inplace=True, seed=1)
    assert torch.equal(base[:, ::2], torch.ones(6, 4, device=device))
    assert torch.equal(base[:, 1::2] != 0, reference_mask((6, 4), 0.9, 1).to(device))


def test_in_place_on_a_view_under_autograd(device):
    """The base's gradient passes through the mask where the view is, as in stock."""
    x = torch.randn(6, 8, device=device, requires_grad=True)
    h = x * 1
    dropout(h[:, 1::2], 0.5, inplace=True, seed=1)
    (dx,) = torch.autograd.grad(h, x, torch.ones_like(h))
    expected = torch.ones(6, 8, device=device)
    expected[:, 1::2] = 2.0 * reference_mask((6, 4), 0.5, 1).to(device)
    assert torch.equal(dx, expected) and torch.equal(h, x * expected)


@pytest.mark.parametrize("inplace", [False, True])
def test_keeps_a_seed_alone(inplace, device):
    x = torch.randn(4096, device=device, requires_grad=True)
    h = x * 1
    kept: list[int] = []

    def pack(t: torch.Tensor) -> torch.Tensor:
        kept.append(t.numel() * t.element_size())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        dropout(h, 0.5, inplace=inplace)
    assert sum(kept) <= 16


def test_special_values_pass_where_kept(device):
    for special in (float("inf"), float("nan")):
        x = torch.full((257,), special, device=device)
        mask = reference_mask((257,), 0.5, 4).to(device)
        y = dropout(x, 0.5, seed=4)
        assert torch.equal(y[~mask], torch.zeros_like(y[~mask]))
        torch.testing.assert_close(y[mask], x[mask], equal_nan=True)


@pytest.mark.parametrize("shape", [(0,), (3, 0, 2), (), (1,)], ids=str)
def test_empty_and_scalar(shape, device):
    x = torch.ones(shape, device=device, requires_grad=True)
    y = dropout(x, 0.5, seed=1)
    (dx,) = torch.autograd.grad(y.sum(), x)
    expected = reference_mask(shape, 0.5, 1).to(device) * 2.0
    assert torch.equal(y, expected) and torch.equal(dx, expected)


def test_manual_seed_governs_it(device):
    x = torch.ones(999, device=device)
    torch.manual_seed(7)
    first, second = dropout(x), dropout(x)
    torch.manual_seed(7)
    assert torch.equal(dropout(x), first) and torch.equal(dropout(x), second)
    assert not torch.equal(first, second)


def test_generator_advances_once_a_call(device):
    """By the same step for any size: single elements do not draw from the generator."""
    states = []
    for n in (1, 1000, 100_000):
        torch.manual_seed(3)
        dropout(torch.ones(n, device=device), 0.5)
        states.append(generator_state(device))
    torch.manual_seed(3)
    assert not torch.equal(states[0], generator_state(device))
    assert torch.equal(states[0], states[1]) and torch.equal(states[0], states[2])


def test_generator_untouched_where_nothing_is_drawn(device):
    x = torch.ones(99, device=device)
    before = generator_state(device)
    dropout(x, 0.5, seed=1)
    dropout(x, 0.0)
    dropout(x, 0.5, training=False)
    dropout(x, 0.5, training=False, mode="classic")
    leaf = x.clone().requires_grad_()
    y = dropout(leaf, 0.5, seed=1)
    y.sum().backward()
    assert torch.equal(generator_state(device), before)


def test_backward_does_not_draw(device):
    leaf = torch.ones(99, device=device, requires_grad=True)
    y = dropout(leaf, 0.5)
    before = generator_state(device)
    y.sum().backward()
    assert torch.equal(generator_state(device), before)
    assert torch.equal(leaf.grad, y.detach())


def test_backward_twice(device):
    x = torch.randn(999, device=device, requires_grad=True)
    y = dropout(x, 0.5)
    (first,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    dropout(x, 0.5)
    (second,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(first, second) and torch.equal(first != 0, y != 0)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint_recomputes_the_same_mask(use_reentrant, device):
    x = torch.randn(999, device=device, requires_grad=True)

    def block(x: torch.Tensor) -> torch.Tensor:
        return dropout(torch.sin(dropout(x, 0.3)), 0.5)

    torch.manual_seed(5)
    plain = block(x)
    (expected,) = torch.autograd.grad(plain.sum(), x)
    torch.manual_seed(5)
    y = checkpoint(block, x, use_reentrant=use_reentrant)
    dropout(x, 0.5)  # other draws between forward and recomputation
    y.sum().backward()
    assert torch.equal(y, plain) and torch.equal(x.grad, expected)


@pytest.mark.parametrize("mode", ["inverted", "classic"])
@pytest.mark.parametrize("inplace", [False, True])
def test_gradgradcheck(inplace, mode, device):
    x = torch.randn(3, 4, 5, dtype=torch.float64, device=device, requires_grad=True)

    def function(x: torch.Tensor) -> torch.Tensor:
        return dropout(x * 1, 0.4, inplace=inplace, seed=6, mode=mode)

    assert torch.autograd.gradcheck(function, x)
    assert torch.autograd.gradgradcheck(function, x)


def test_double_backward_uses_the_same_mask(device):
    x = torch.randn(99, device=device, requires_grad=True)
    y = dropout(x, 0.5)
    dy = torch.ones_like(y, requires_grad=True)
    (dx,) = torch.autograd.grad(y, x, dy, create_graph=True)
    (ddy,) = torch.autograd.grad(dx.sum(), dy)
    assert torch.equal(ddy, torch.where(y != 0, 2.0, 0.0))
