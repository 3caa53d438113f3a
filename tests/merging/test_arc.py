"""Coefficients of an arc without a sine of a C library; MERGE-13."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest

from kolm_build.steps.merging.arc import arc_shares


@pytest.mark.parametrize("degrees", [1e-6, 0.01, 1, 30, 60, 90, 135, 170, 178.7])
@pytest.mark.parametrize("share", ["0.001", "0.25", "0.5", "0.9"])
def test_coefficients_are_those_of_the_sines(degrees, share):
    angle, t = math.radians(degrees), float(share)
    found = arc_shares(2 * math.sin(angle / 2), 2 * math.cos(angle / 2), Fraction(share))
    wanted = (math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle))
    assert found == pytest.approx(wanted, rel=1e-12)


def test_a_right_angle_cut_in_three():
    """Sin 30 degrees is a half, to the last bit; the other is the square root of 3/4."""
    assert arc_shares(1.0, 1.0, Fraction(1, 3)) == (math.sqrt(0.75), 0.5)


def test_halves_are_equal():
    left, right = arc_shares(0.1, 1.9, Fraction(1, 2))
    assert left == right
