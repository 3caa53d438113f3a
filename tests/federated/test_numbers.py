"""Fixed point, clipping, noise and what they reveal (spec/algorithms-federated.md)."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kolm_build.core.federated.fixed_point import (
    bound_of,
    check_room,
    clipped,
    signed,
    square_norm,
    to_fixed,
    wrapped,
)
from kolm_build.core.federated.gaussian import gaussian_noise
from kolm_build.core.federated.privacy import ORDERS, rdp, spent
from kolm_build.errors import InvalidRecordError

WHOLE = st.integers(-(1 << 40), 1 << 40)


@given(st.floats(-1e6, 1e6, width=32), st.integers(8, 40))
def test_a_number_is_cut_off_toward_zero_exactly(value, bits):
    """FED-20."""
    (made,) = to_fixed([value], bits)
    assert made == int(Fraction(value) * 2**bits)
    assert abs(made) <= abs(Fraction(value)) * 2**bits


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_with_its_place(value):
    """FED-20."""
    with pytest.raises(InvalidRecordError, match="finite") as caught:
        to_fixed([0.0, value], 24)
    assert caught.value.where == "value 1"


@given(st.lists(WHOLE, max_size=20), st.integers(1, 1 << 41))
def test_no_clipped_vector_is_longer_than_the_bound(values, bound):
    """FED-21."""
    made = clipped(values, bound)
    assert square_norm(made) <= bound * bound
    if square_norm(values) <= bound * bound:
        assert made == values


@given(st.lists(WHOLE, min_size=1, max_size=20), st.integers(1, 1 << 30))
def test_clipping_keeps_the_direction(values, bound):
    """FED-21: each number is the exact one, cut off, within what rounding the norm up costs."""
    norm = math.isqrt(max(0, square_norm(values) - 1)) + 1
    if square_norm(values) <= bound * bound:
        return
    for before, after in zip(values, clipped(values, bound), strict=True):
        exact = Fraction(before * bound, norm)
        assert abs(after) <= abs(exact) < abs(after) + 1
        assert before * after >= 0


def test_a_bound_is_the_clip_in_units():
    """FED-21."""
    assert bound_of(Decimal("1.5"), 8) == 384
    assert bound_of(Decimal("0.1"), 8) == 25


@given(st.integers(-(1 << 63), (1 << 63) - 1))
def test_wrapping_is_undone_by_reading_as_signed(value):
    """FED-23."""
    assert signed(wrapped(value)) == value


@given(st.lists(st.integers(-(1 << 50), 1 << 50), max_size=30))
def test_a_sum_modulo_two_to_the_64_is_the_sum(values):
    """FED-23."""
    assert signed(sum(wrapped(value) for value in values) % (1 << 64)) == sum(values)


def test_a_round_that_could_run_over_is_refused():
    """FED-22."""
    check_room(weight=1 << 20, bound=(1 << 42) - 1)
    with pytest.raises(InvalidRecordError, match="run over"):
        check_room(weight=1 << 20, bound=1 << 42)
    with pytest.raises(InvalidRecordError, match="run over"):
        check_room(weight=1, bound=1, noise=1 << 62)


# Noise


def test_noise_is_the_same_for_a_seed_and_other_for_another():
    """FED-40."""
    first = gaussian_noise(bytes(32), count=50, variance=10**6)
    assert gaussian_noise(bytes(32), count=50, variance=10**6) == first
    assert gaussian_noise(b"\1" * 32, count=50, variance=10**6) != first
    assert gaussian_noise(bytes(32), count=9, variance=10**6) == first[:9]
    assert gaussian_noise(bytes(32), count=3, variance=0) == [0, 0, 0]
    with pytest.raises(InvalidRecordError, match="below zero"):
        gaussian_noise(bytes(32), count=1, variance=-1)


@pytest.mark.parametrize("variance", [1, 3, 100])
def test_noise_has_the_discrete_gaussians_chances(variance):
    """FED-40: chi-squared against exp(-x² / 2 variance), cells with ten or more expected."""
    count = 20_000
    drawn = gaussian_noise(b"chances".ljust(32), count=count, variance=variance)
    reach = range(-8 * math.isqrt(variance) - 8, 8 * math.isqrt(variance) + 9)
    whole = sum(math.exp(-x * x / (2 * variance)) for x in reach)
    expected = {x: count * math.exp(-x * x / (2 * variance)) / whole for x in reach}
    cells = [x for x in reach if expected[x] >= 10]
    square = sum((drawn.count(x) - expected[x]) ** 2 / expected[x] for x in cells)
    free = len(cells)
    assert square < free + 5 * math.sqrt(2 * free)
    assert all(x in reach for x in drawn)


def test_noise_of_a_large_variance_has_its_mean_and_variance():
    """FED-40."""
    variance = (3 << 24) ** 2
    drawn = gaussian_noise(b"large".ljust(32), count=4000, variance=variance)
    assert abs(sum(drawn) / 4000) < 5 * math.sqrt(variance / 4000)
    assert abs(square_norm(drawn) / 4000 / variance - 1) < 5 * math.sqrt(2 / 4000)


# The accountant


def test_the_moments_accountants_published_figure_comes_out():
    """FED-50: Abadi et al., arXiv:1607.00133, section 3.2: q 0.01, sigma 4, T 10,000, delta 1e-5.

    They give epsilon 1.26 with the plain tail bound and orders up to 33.
    """
    q, z, delta = Decimal("0.01"), Decimal(4), Decimal("1e-5")
    found = min(
        10_000 * rdp(order=order, noise_multiplier=z, sampling_rate=q)
        - delta.ln() / Decimal(order - 1)
        for order in range(2, 34)
    )
    assert f"{found:.2f}" == "1.26"


def test_the_gaussian_mechanisms_divergence_is_mironovs():
    """FED-50: arXiv:1702.07476, corollary 3: a / (2 sigma²)."""
    assert rdp(order=5, noise_multiplier=Decimal(2)) == Decimal("0.625")


@pytest.mark.parametrize(
    ("rate", "noise", "rounds", "delta", "epsilon"),
    [
        ("1", "1.1", 10, "0.00001", 17.198385694918926),
        ("1", "4", 100, "0.000001", 15.32798402653992),
        ("0.01", "4", 10_000, "0.00001", 1.0354900660362436),
        ("0.004266666666666667", "1.1", 14_063, "0.00001", 2.5970795196566616),
    ],
)
def test_epsilon_is_that_of_googles_accountant_rounded_up(rate, noise, rounds, delta, epsilon):
    """FED-51, FED-52: dp-accounting 0.6.0, RdpAccountant on the same orders, to 1e-9 and up.

    The last row is the tutorial of Opacus and TensorFlow Privacy on MNIST: 60,000 rows in batches
    of 256, 60 epochs.
    """
    found = spent(
        rounds=rounds,
        noise_multiplier=Decimal(noise),
        delta=Decimal(delta),
        sampling_rate=Decimal(rate),
    )
    assert epsilon - 1e-9 <= float(found.epsilon) < epsilon + 1.001e-4
    assert found.order in ORDERS


@given(st.integers(1, 40), st.integers(1, 40))
def test_more_rounds_cost_more_and_more_noise_less(rounds, more):
    """FED-51."""
    delta, noise = Decimal("1e-5"), Decimal("1.5")

    def loss(count, multiplier):
        return spent(rounds=count, noise_multiplier=multiplier, delta=delta).epsilon

    assert loss(rounds, noise) <= loss(rounds + more, noise)
    assert loss(rounds, noise + more) <= loss(rounds, noise)
    assert loss(0, noise) == 0


@pytest.mark.parametrize("delta", ["0", "1"])
def test_a_delta_that_means_nothing_is_refused(delta):
    with pytest.raises(InvalidRecordError):
        spent(rounds=1, noise_multiplier=Decimal(1), delta=Decimal(delta))
    with pytest.raises(InvalidRecordError):
        rdp(order=1, noise_multiplier=Decimal(1))
