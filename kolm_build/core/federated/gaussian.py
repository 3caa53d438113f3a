"""The discrete Gaussian, sampled exactly: whole numbers and coin flips, no floating point.

C. Canonne, G. Kamath, T. Steinke, The discrete Gaussian for differential privacy,
arXiv:2004.00010, algorithms 1 to 3. The coin flips are the bits of a secret seed, so a seed gives
the same noise on every machine (FED-40, FED-41).
"""

from __future__ import annotations

from math import isqrt

from kolm_build.core.federated.keystream import Bits
from kolm_build.errors import InvalidRecordError


def gaussian_noise(seed: bytes, *, count: int, variance: int) -> list[int]:
    """`count` whole numbers, each drawn with probability in proportion to exp(-x² / 2 variance).

    Args:
        seed: 32 secret bytes.
        count: How many.
        variance: The parameter of that name, a whole number of squared units; 0 for no noise.

    Raises:
        InvalidRecordError: `variance` is negative.
    """
    if variance < 0:
        raise InvalidRecordError("a variance below zero", actual=str(variance))
    if variance == 0:
        return [0] * count
    bits = Bits(seed)
    return [_gaussian(bits, variance) for _ in range(count)]


def _gaussian(bits: Bits, variance: int) -> int:
    """Algorithm 3: a discrete Laplace draw that is kept with the right probability."""
    scale = isqrt(variance) + 1
    while True:
        drawn = _laplace(bits, scale)
        # exp(-(|y| - variance / scale)² / (2 variance))
        top = (abs(drawn) * scale - variance) ** 2
        if _bernoulli_exp(bits, top, 2 * variance * scale * scale):
            return drawn


def _laplace(bits: Bits, scale: int) -> int:
    """Algorithm 2, with s = 1: probability in proportion to exp(-|x| / scale)."""
    while True:
        rest = bits.below(scale)
        if not _bernoulli_exp(bits, rest, scale):
            continue
        whole = 0
        while _bernoulli_exp(bits, 1, 1):
            whole += 1
        size = rest + scale * whole
        negative = bits.take(1)
        if not (negative and size == 0):
            return -size if negative else size


def _bernoulli_exp(bits: Bits, top: int, bottom: int) -> bool:
    """Algorithm 1: true with probability exp(-top / bottom)."""
    while top > bottom:
        if not _bernoulli_exp_small(bits, 1, 1):
            return False
        top -= bottom
    return _bernoulli_exp_small(bits, top, bottom)


def _bernoulli_exp_small(bits: Bits, top: int, bottom: int) -> bool:
    """The same for top / bottom from 0 to 1: the parity of the first failure in a row of flips."""
    turn = 1
    while _bernoulli(bits, top, bottom * turn):
        turn += 1
    return turn % 2 == 1


def _bernoulli(bits: Bits, top: int, bottom: int) -> bool:
    """True with probability top / bottom: bits of a uniform number until the answer is certain."""
    while 0 < top < bottom:
        doubled = 2 * top
        bit = bits.take(1)
        digit, top = (1, doubled - bottom) if doubled >= bottom else (0, doubled)
        if bit != digit:
            return bit < digit
    return top >= bottom
