"""Shamir's secret sharing over a prime field: enough shares give the secret, fewer nothing.

A. Shamir, How to share a secret, Communications of the ACM 22 (1979). The field holds every
secret of 32 bytes; randomness comes in as bytes, so everything here is a function.
"""

from __future__ import annotations

from collections.abc import Mapping

from kolm_build.errors import InvalidRecordError

PRIME = (1 << 256) + 297
"""The least prime above 2^256 (FED-10)."""

SECRET_BYTES = 32
SHARE_BYTES = 33
COEFFICIENT_BYTES = 64
"""Random bytes of a coefficient: so many more than the field that the remainder is uniform."""

MAX_SHARES = 1 << 16


def random_bytes_needed(threshold: int) -> int:
    """How many random bytes `split` takes."""
    return (threshold - 1) * COEFFICIENT_BYTES


def split(secret: bytes, *, threshold: int, shares: int, random: bytes) -> Mapping[int, bytes]:
    """The shares of `secret` by their number, from 1 (FED-11).

    Args:
        secret: 32 bytes.
        threshold: How many shares give it back.
        shares: How many to make.
        random: Secret random bytes, `random_bytes_needed` of them.

    Raises:
        InvalidRecordError: Lengths or numbers do not fit.
    """
    if len(secret) != SECRET_BYTES:
        raise InvalidRecordError(f"a secret has {SECRET_BYTES} bytes", actual=str(len(secret)))
    if not 1 <= threshold <= shares < MAX_SHARES:
        raise InvalidRecordError(
            "a threshold that cannot be", expected=f"1 to {shares}", actual=str(threshold)
        )
    if len(random) != random_bytes_needed(threshold):
        raise InvalidRecordError("not the number of random bytes that a split takes")
    starts = range(0, len(random), COEFFICIENT_BYTES)
    polynomial = [int.from_bytes(secret, "big")] + [
        int.from_bytes(random[at : at + COEFFICIENT_BYTES], "big") % PRIME for at in starts
    ]
    return {
        number: _value(polynomial, number).to_bytes(SHARE_BYTES, "big")
        for number in range(1, shares + 1)
    }


def join(shares: Mapping[int, bytes], *, threshold: int) -> bytes:
    """The secret that `shares` were made of (FED-12).

    The same whichever shares there are: the first `threshold` by number are used.

    Raises:
        InvalidRecordError: There are fewer than `threshold`, or one is no share, or together they
            are shares of nothing.
    """
    if len(shares) < threshold:
        raise InvalidRecordError(
            "too few shares of a secret", expected=f"{threshold} or more", actual=str(len(shares))
        )
    points = [(number, _parsed(number, shares[number])) for number in sorted(shares)[:threshold]]
    secret = 0
    for x, y in points:
        above, below = 1, 1
        for other, _ in points:
            if other != x:
                above, below = above * other % PRIME, below * (other - x) % PRIME
        secret = (secret + y * above * pow(below, -1, PRIME)) % PRIME
    if secret >> (8 * SECRET_BYTES):
        raise InvalidRecordError("these shares do not belong together")
    return secret.to_bytes(SECRET_BYTES, "big")


def _value(polynomial: list[int], at: int) -> int:
    """Horner's rule, highest coefficient first."""
    value = 0
    for coefficient in reversed(polynomial):
        value = (value * at + coefficient) % PRIME
    return value


def _parsed(number: int, share: bytes) -> int:
    value = int.from_bytes(share, "big")
    if not 1 <= number < MAX_SHARES or len(share) != SHARE_BYTES or value >= PRIME:
        raise InvalidRecordError("not a share", where=f"share {number}")
    return value
