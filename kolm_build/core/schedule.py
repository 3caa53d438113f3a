"""The learning rate's schedule: what share of the peak each optimiser step takes (spec/sft.md).

Whole numbers and divisions of binary64 alone decide it. A C library's cosine differs in its last
bit between processors, so the cosine here is computed with integers, to any precision that its
rounding needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

_GUARD_BITS = 64
"""More than the roundings of the series below can touch: there are far fewer than 2^50 of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How the learning rate moves.

    Attributes:
        kind: ``constant``, ``linear`` or ``cosine``: what comes after the warm-up.
        warmup_steps: Optimiser steps in which the rate rises from 0.
        steps: All optimiser steps of the training.
    """

    kind: str
    warmup_steps: int
    steps: int

    def factor(self, step: int) -> float:
        """What the peak rate is multiplied by (SFT-13).

        Args:
            step: How many optimiser steps were made before.

        Returns:
            0 to 1; the same bits on every machine.
        """
        if step < self.warmup_steps:
            return step / self.warmup_steps
        if self.kind == "constant":
            return 1.0
        if step >= self.steps:
            return 0.0
        done, all_of_them = step - self.warmup_steps, self.steps - self.warmup_steps
        if self.kind == "linear":
            return (all_of_them - done) / all_of_them
        if self.kind == "cosine":
            return raised_cosine(done, all_of_them)
        raise AssertionError(f"no schedule {self.kind!r}")


def raised_cosine(part: int, whole: int) -> float:
    """The correctly rounded (1 + cos(pi part / whole)) / 2, for 0 <= part < whole.

    A binary64 number is half-way between two others only if it is rational, and the rational values
    of this function (0, 1/4, 1/2, 3/4, 1) are binary64 numbers; so a precision that decides exists.
    """
    bits = 128
    while True:
        one = 1 << bits
        low = _raised_cosine(part, whole, bits)
        rounded = (low - 1) / one  # Python divides integers with one rounding
        if rounded == (low + 2) / one:
            return rounded
        bits *= 2


def _raised_cosine(part: int, whole: int, bits: int) -> int:
    """2^bits (1 + cos(pi part / whole)) / 2, less than 2 off."""
    scale = bits + _GUARD_BITS
    angle = _pi(scale) * part // whole
    square = angle * angle >> scale
    total = size = 1 << scale
    sign, count = 1, 0
    while size:
        sign, count = -sign, count + 2
        size = (size * square >> scale) // (count * (count - 1))
        total += sign * size
    return ((1 << scale) + total) >> (_GUARD_BITS + 1)


@cache
def _pi(scale: int) -> int:
    """2^scale pi, rounded down, by Machin's formula."""
    one = 1 << (scale + 32)
    return 4 * (4 * _arctangent(5, one) - _arctangent(239, one)) >> 32


def _arctangent(inverse: int, one: int) -> int:
    """`one` times the arctangent of 1 / `inverse`."""
    total, power = 0, one // inverse
    sign, count = 1, 1
    while power:
        total += sign * (power // count)
        power //= inverse * inverse
        sign, count = -sign, count + 2
    return total
