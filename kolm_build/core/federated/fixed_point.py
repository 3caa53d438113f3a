"""Updates as whole numbers, so that sums are exact and masks cancel bit for bit.

A number x is trunc(x * 2^bits); vectors add modulo 2^64. Cutting off never makes a vector longer,
so a bound on the norm holds for the whole numbers exactly (FED-20 to FED-23).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from fractions import Fraction
from math import isfinite, isqrt, ldexp

from kolm_build.errors import InvalidRecordError

MODULUS = 1 << 64
_SIGN = 1 << 63


def to_fixed(values: Iterable[float], bits: int) -> list[int]:
    """Each of `values` times 2^`bits`, cut off toward zero; exact (FED-20).

    Raises:
        InvalidRecordError: One is not finite.
    """
    made = []
    for at, value in enumerate(values):
        if not isfinite(value):
            raise InvalidRecordError("not a finite number", where=f"value {at}", actual=str(value))
        made.append(int(ldexp(value, bits)))
    return made


def bound_of(clip: Decimal, bits: int) -> int:
    """The greatest norm, as a whole number: floor(clip * 2^bits)."""
    return int(Fraction(clip) * (1 << bits))


def square_norm(values: Iterable[int]) -> int:
    """The sum of the squares, exact."""
    return sum(value * value for value in values)


def clipped(values: Sequence[int], bound: int) -> list[int]:
    """`values`, shortened to a norm of at most `bound` where they are longer (FED-21).

    Each becomes trunc(value * bound / n), where n is the least whole number that is not below the
    norm. No rounding can make the result longer than `bound`.
    """
    square = square_norm(values)
    if square <= bound * bound:
        return list(values)
    norm = isqrt(square - 1) + 1
    return [_toward_zero(value * bound, norm) for value in values]


def _toward_zero(number: int, divisor: int) -> int:
    return number // divisor if number >= 0 else -(-number // divisor)


def wrapped(value: int) -> int:
    """`value` modulo 2^64, from 0."""
    return value % MODULUS


def signed(value: int) -> int:
    """The number from -2^63 to 2^63 - 1 that is `value` modulo 2^64 (FED-23)."""
    value %= MODULUS
    return value - MODULUS if value >= _SIGN else value


def check_room(*, weight: int, bound: int, noise: int = 0) -> None:
    """Refuse a round whose sum could run over.

    Args:
        weight: The weights of all sites, added.
        bound: The greatest norm of an update.
        noise: What all the noise together will not exceed.

    Raises:
        InvalidRecordError: weight * bound + noise is 2^62 or more (FED-22).
    """
    if weight * bound + noise >= 1 << 62:
        raise InvalidRecordError(
            "the sum of the updates may run over 64 bits",
            expected="weight * clip * 2^fraction_bits + noise below 2^62",
            actual=f"weight {weight}, bound {bound}, noise {noise}",
            advice="Take a smaller clip or fewer fraction_bits.",
        )
