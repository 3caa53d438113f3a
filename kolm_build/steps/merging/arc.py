"""Shares of an arc, with whole numbers alone: no sine of a C library takes part (MERGE-13)."""

from __future__ import annotations

from fractions import Fraction
from math import isqrt

_BITS = 256
_ONE = 1 << _BITS
_HALVINGS = 8


def arc_shares(chord: float, across: float, share: Fraction) -> tuple[float, float]:
    """The coefficients of spherical interpolation between two directions u and v.

    Args:
        chord: |u - v|, above 0.
        across: |u + v|, above 0.
        share: How far from u to v, 0 to 1.

    Returns:
        sin((1 - share) angle) / sin(angle) and sin(share angle) / sin(angle), where angle is
        2 atan(chord / across); each computed to within 2^-200 and rounded once to binary64.
    """
    ratio = Fraction(chord) / Fraction(across)
    angle = 2 * _arctangent(ratio.numerator * _ONE // ratio.denominator)
    whole = _sine(angle)
    return _sine(_part(angle, 1 - share)) / whole, _sine(_part(angle, share)) / whole


def _part(angle: int, share: Fraction) -> int:
    return angle * share.numerator // share.denominator


def _arctangent(tangent: int) -> int:
    """2^256 atan(x), of 2^256 x for x from 0: halved eight times, then its series."""
    for _ in range(_HALVINGS):
        tangent = tangent * _ONE // (_ONE + isqrt(_ONE * _ONE + tangent * tangent))
    total, power, square = 0, tangent, tangent * tangent >> _BITS
    count, sign = 1, 1
    while power:
        total += sign * (power // count)
        power = power * square >> _BITS
        count, sign = count + 2, -sign
    return total << _HALVINGS


def _sine(angle: int) -> int:
    """2^256 sin(x), of 2^256 x for x from 0 to pi."""
    total, term, square = 0, angle, angle * angle >> _BITS
    count, sign = 1, 1
    while term:
        total += sign * term
        term = (term * square >> _BITS) // ((count + 1) * (count + 2))
        count, sign = count + 2, -sign
    return total
