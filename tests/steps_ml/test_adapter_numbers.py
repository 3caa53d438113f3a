"""The numbers behind adapters: NF4, QR, singular values, Cayley's transform, budgets of ranks.

No trainer is imported here.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kolm_build.numerics import guard
from kolm_build.steps import _nf4 as nf4
from kolm_build.steps._cayley import (
    block_diagonal,
    butterfly,
    butterfly_order,
    cayley,
    skew_of_upper,
)
from kolm_build.steps._factorisation import (
    jacobi,
    leading_qr,
    leading_svd,
    orthonormal,
    samples,
)

PUBLISHED = """
    -1.0 -0.6961928009986877 -0.5250730514526367 -0.39491748809814453
    -0.28444138169288635 -0.18477343022823334 -0.09105003625154495 0.0
    0.07958029955625534 0.16093020141124725 0.24611230194568634 0.33791524171829224
    0.44070982933044434 0.5626170039176941 0.7229568362236023 1.0
"""
"""arXiv:2305.14314, appendix E."""


def spectrum(rows, columns, values, seed=0):
    """A matrix with the singular values `values`."""
    generator = torch.Generator().manual_seed(seed)
    size = len(values)
    left, _ = torch.linalg.qr(torch.randn(rows, size, generator=generator))
    right, _ = torch.linalg.qr(torch.randn(columns, size, generator=generator))
    return left @ torch.diag(torch.tensor(values)) @ right.T


# ------------------------------------------------------------------------------------- NF4


def test_the_codes_are_the_published_sixteen():
    """ADPT-10."""
    assert tuple(map(float, PUBLISHED.split())) == nf4.CODES
    codes, scales = nf4.quantise(np.array(nf4.CODES * 4, dtype=np.float32))
    assert codes.tolist() == [list(range(16)) * 4]
    assert scales.tolist() == [[1.0]]


def test_every_value_takes_the_nearest_code_and_of_two_the_lower():
    """ADPT-10: against exact arithmetic, the middles among the values."""
    from fractions import Fraction

    table = [Fraction(float(np.float32(code))) for code in nf4.CODES]
    middles = [float((one + other) / 2) for one, other in itertools.pairwise(table)]
    values = np.float32([*middles, *np.linspace(-1, 1, 500), 1.0])
    for start in range(0, len(values), 63):
        block = np.float32([*values[start : start + 63], 1.0])  # the scale is 1
        codes, _ = nf4.quantise(block)
        for value, code in zip(block, codes.reshape(-1), strict=False):
            apart = [abs(Fraction(float(value)) - one) for one in table]
            assert code == apart.index(min(apart))


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=200))
@settings(max_examples=50)
def test_a_value_comes_back_within_half_a_gap_of_its_block(values):
    """ADPT-10: and the greatest of a block comes back as it was."""
    array = np.float32(values)
    back = nf4.dequantise(*nf4.quantise(array), array.shape)
    for start in range(0, len(array), nf4.BLOCK):
        block, other = array[start : start + nf4.BLOCK], back[start : start + nf4.BLOCK]
        most = np.abs(block).max()
        assert (np.abs(block - other) <= most * np.float32(0.1521)).all()
        at = np.abs(block).argmax()
        assert other[at] == block[at]


def test_rounding_twice_is_rounding_once():
    """ADPT-10: a merge that rounds again what was rounded changes nothing."""
    once = nf4.rounded(torch.randn(33, 7))
    assert torch.equal(nf4.rounded(once), once)


# ----------------------------------------------------------------------------- factorisations


@pytest.mark.parametrize("shape", [(96, 130), (130, 96), (20, 20)])
def test_leading_singular_values_are_those_of_lapack(shape):
    """ADPT-22."""
    values = [2.0**-at for at in range(20)]
    matrix = spectrum(*shape, values)
    noise = torch.randn(shape[1], samples(matrix, 6), generator=torch.Generator().manual_seed(1))
    left, found, right = leading_svd(matrix, 6, noise)
    u, s, v = torch.linalg.svd(matrix)
    torch.testing.assert_close(found, s[:6], rtol=1e-5, atol=1e-6)
    wanted = u[:, :6] @ torch.diag(s[:6]) @ v[:6]
    torch.testing.assert_close(left @ torch.diag(found) @ right, wanted, rtol=0, atol=2e-6)
    peaks = left.gather(0, left.abs().argmax(dim=0, keepdim=True))
    assert (peaks > 0).all()


def test_a_rank_that_a_matrix_does_not_have_is_zero():
    """ADPT-22, ADPT-21: of rank 3, asked for 8."""
    matrix = spectrum(30, 40, [3.0, 2.0, 1.0])
    left, values, right = leading_svd(matrix, 8, torch.randn(40, samples(matrix, 8)))
    torch.testing.assert_close(values[:3], torch.tensor([3.0, 2.0, 1.0]), rtol=1e-5, atol=0)
    assert values[3:].abs().max() < 1e-5
    torch.testing.assert_close(left @ torch.diag(values) @ right, matrix, rtol=0, atol=2e-6)
    zero = torch.zeros(5, 4)
    assert not any(part.any() for part in leading_svd(zero, 2, torch.randn(4, 4)))
    q, r = leading_qr(matrix, 35)
    assert (q.shape, r.shape) == ((30, 35), (35, 40))


def test_a_factorisation_of_full_rank_is_the_matrix():
    matrix = torch.randn(24, 17, generator=torch.Generator().manual_seed(2))
    left, values, right = leading_svd(matrix, 17, torch.randn(17, samples(matrix, 17)))
    torch.testing.assert_close(left @ torch.diag(values) @ right, matrix, rtol=0, atol=5e-6)
    q, r = leading_qr(matrix, 17)
    torch.testing.assert_close(q @ r, matrix, rtol=0, atol=2e-6)


def test_q_and_r_are_those_of_lapack_with_a_positive_diagonal():
    """ADPT-21."""
    matrix = torch.randn(40, 25, generator=torch.Generator().manual_seed(3))
    q, r = leading_qr(matrix, 9)
    wanted_q, wanted_r = torch.linalg.qr(matrix)
    signs = torch.sign(torch.diagonal(wanted_r))
    torch.testing.assert_close(q, (wanted_q * signs)[:, :9], rtol=0, atol=2e-6)
    torch.testing.assert_close(r, (signs[:, None] * wanted_r)[:9], rtol=0, atol=1e-5)
    assert (torch.diagonal(r) > 0).all()


def test_columns_that_are_nearly_dependent_stay_orthogonal():
    """ADPT-20: Gram-Schmidt once would lose half of the digits."""
    matrix = torch.randn(50, 1) + 1e-3 * torch.randn(50, 12)
    basis = orthonormal(matrix)
    torch.testing.assert_close(basis.T @ basis, torch.eye(12), rtol=0, atol=2e-6)


@given(st.integers(1, 9), st.integers(0, 1000))
@settings(max_examples=40)
def test_jacobi_gives_a_singular_value_decomposition(size, seed):
    """ADPT-23: against LAPACK, in binary64; odd sizes and size 1 too."""
    matrix = np.random.default_rng(seed).normal(size=(size, size))
    u, values, v = jacobi(matrix)
    np.testing.assert_allclose(u @ np.diag(values) @ v.T, matrix, atol=1e-12)
    np.testing.assert_allclose(values, np.linalg.svd(matrix, compute_uv=False), atol=1e-12)
    np.testing.assert_allclose(v.T @ v, np.eye(size), atol=1e-12)


def test_factorisations_are_certified_operations_alone():
    """ADPT-20: the guard of portable-1 lets them pass, gradients of Cayley's too."""
    with guard.activate():
        matrix = torch.randn(12, 9)
        leading_svd(matrix, 3, torch.randn(9, samples(matrix, 3)))
        leading_qr(matrix, 3)
        values = torch.randn(2, 6, requires_grad=True)
        cayley(skew_of_upper(values, 4)).sum().backward()
        assert values.grad is not None


# ----------------------------------------------------------------------------- rotations


def test_cayley_is_the_solution_of_its_equation():
    """ADPT-30: LAPACK's solver and its gradient are the oracle."""
    values = torch.randn(3, 28, requires_grad=True)
    weights = torch.randn(3, 8, 8)
    skew = skew_of_upper(values, 8)
    eye = torch.eye(8)
    found = cayley(skew)
    wanted = torch.linalg.solve(eye + skew, eye - skew, left=False)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found @ found.mT, eye.expand(3, 8, 8), rtol=0, atol=5e-6)
    (one,) = torch.autograd.grad((found * weights).sum(), values, retain_graph=True)
    (other,) = torch.autograd.grad((wanted * weights).sum(), values)
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_upper_entries_make_a_skew_symmetric_matrix():
    made = skew_of_upper(torch.tensor([[1.0, 2.0, 3.0]]), 3)
    assert made.tolist() == [[[0, 1, 2], [-1, 0, 3], [-2, -3, 0]]]


def test_butterflies_join_halves_that_are_twice_as_far_apart_each_time():
    """ADPT-31: four blocks of two; PEFT's permutations are the oracle."""
    orders = [butterfly_order(4, 2, factor).tolist() for factor in range(3)]
    assert orders == [
        [0, 1, 2, 3, 4, 5, 6, 7],
        [0, 2, 1, 3, 4, 6, 5, 7],
        [0, 4, 1, 5, 2, 6, 3, 7],
    ]


def test_a_butterfly_is_orthogonal_and_dense():
    """ADPT-31: log2(2 blocks) factors reach every input from every input."""
    blocks = cayley(skew_of_upper(torch.randn(12, 1), 2)).reshape(3, 4, 2, 2)
    whole = butterfly(blocks)
    torch.testing.assert_close(whole @ whole.T, torch.eye(8), rtol=0, atol=1e-6)
    assert (whole != 0).all()
    one = butterfly(blocks[:1])
    assert torch.equal(one, block_diagonal(blocks[0]))
    assert torch.equal(one, torch.block_diag(*blocks[0]))


# ----------------------------------------------------------------------------- budgets


def test_the_budget_falls_as_the_cube_of_what_is_left():
    """ADPT-40, worked by hand: from 12 to 4 ranks in 10 steps, 2 before, 3 after.

    Five steps to fall in; of them 4, 3, 2, 1 and 0 are left: 8 times 64/125, 27/125, 8/125, 1/125.
    """
    from kolm_build.steps.adapters._budget import Budget

    budget = Budget(first=12, last=4, warmup=2, cooldown=3, steps=10, interval=2)
    assert [budget.at(step) for step in range(1, 11)] == [12, 12, 8, 5, 4, 4, 4, 4, 4, 4]
    assert [step for step in range(1, 11) if budget.allocates(step)] == [4, 6, 8, 9, 10]


def test_ranks_stay_where_they_matter_most():
    """ADPT-40: over all layers; of equal ones the first."""
    from kolm_build.steps.adapters._budget import kept

    scores = {"b": torch.tensor([5.0, 1.0, 3.0]), "a": torch.tensor([3.0, 0.0])}
    stay = kept(scores, 3)
    assert stay["a"].tolist() == [True, False]
    assert stay["b"].tolist() == [True, False, True]
    assert sum(int(one.sum()) for one in kept(scores, 0).values()) == 0


def test_importance_is_smoothed_sensitivity_times_uncertainty():
    """ADPT-40: two steps by hand (the paper's section on importance)."""
    from kolm_build.steps.adapters._budget import Importance, triplet_scores

    importance, state = Importance(beta1=0.5, beta2=0.25), {}
    importance.note(state, torch.tensor([2.0]), torch.tensor([-3.0]))  # 6: mean 3, apart 3: 2.25
    importance.note(state, torch.tensor([1.0]), torch.tensor([1.0]))  # 1: mean 2, apart 1
    assert importance.of(state).item() == 2.0 * (0.25 * 2.25 + 0.75 * 1.0)
    scores = triplet_scores(
        torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0, 3.0], [0, 0]]), torch.ones(4, 2)
    )
    assert scores.tolist() == [4.0, 3.0]


def test_allocation_agrees_with_pefts():
    """ADPT-40: the ranks that PEFT's allocator keeps of the same gradients."""
    pytest.importorskip("peft")
    from peft.tuners.adalora.layer import RankAllocator

    from kolm_build.steps.adapters._budget import Importance, kept, triplet_scores

    torch.manual_seed(0)
    network = torch.nn.Module()
    shapes = {"lora_A": (4, 6), "lora_B": (5, 4), "lora_E": (4, 1)}
    for layer in ("one", "two"):
        holder = torch.nn.Module()
        for side, shape in shapes.items():
            table = torch.nn.ParameterDict({"default": torch.nn.Parameter(torch.randn(shape))})
            setattr(holder, side, table)
        setattr(network, layer, holder)

    class Settings:
        beta1, beta2, target_r = 0.85, 0.85, 2

    theirs = RankAllocator(network, Settings, "default")
    ours = Importance(beta1=0.85, beta2=0.85)
    state = {name: {} for name, _ in network.named_parameters()}
    for _ in range(3):
        for one in network.parameters():
            one.grad = torch.randn(one.shape)
        theirs.update_ipt(network)
        for name, one in network.named_parameters():
            ours.note(state[name], one, one.grad)
    theirs.mask_to_budget(network, 5)
    scores = {
        layer: triplet_scores(
            *(ours.of(state[f"{layer}.{side}.default"]) for side in ("lora_E", "lora_A", "lora_B"))
        )
        for layer in ("one", "two")
    }
    for layer, stay in kept(scores, 5).items():
        masked = getattr(network, layer).lora_E["default"][:, 0] != 0
        assert masked.tolist() == stay.tolist()
