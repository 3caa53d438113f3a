"""How much better one model is than another on the same rows, and what chance leaves of it.

An interval is that of the paired bootstrap over rows, computed exactly, or that of Student's t over
seeds (ALG-31, ALG-35).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate

from kolm_build.errors import InvalidRecordError

QUANTILES = (
    *("12.706", "4.303", "3.182", "2.776", "2.571", "2.447", "2.365", "2.306", "2.262", "2.228"),
    *("2.201", "2.179", "2.160", "2.145", "2.131", "2.120", "2.110", "2.101", "2.093"),
)
"""The 97.5 % quantile of Student's t for 1, 2, … degrees of freedom."""

Verdicts = Mapping[str, bool]
"""Row id to whether the model was right."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How two models did on the same rows.

    Attributes:
        rows: How many rows.
        baseline: Rows that the baseline had right.
        tuned: Rows that the tuned model had right.
        won: Rows that the tuned model alone had right.
        lost: Rows that the baseline alone had right.
    """

    rows: int
    baseline: int
    tuned: int
    won: int
    lost: int

    @classmethod
    def of(cls, baseline: Verdicts, tuned: Verdicts) -> Difference:
        """The difference between two models' verdicts.

        Raises:
            InvalidRecordError: They are not of the same rows.
        """
        if baseline.keys() != tuned.keys() or not tuned:
            raise InvalidRecordError(
                "the two were not asked the same rows",
                expected=f"the {len(tuned)} rows of the tuned model",
                actual=f"{len(baseline)} rows, {len(baseline.keys() & tuned.keys())} of them",
            )
        return cls(
            rows=len(tuned),
            baseline=sum(baseline.values()),
            tuned=sum(tuned.values()),
            won=sum(right and not baseline[row] for row, right in tuned.items()),
            lost=sum(not right and baseline[row] for row, right in tuned.items()),
        )

    @property
    def interval(self) -> tuple[int, int]:
        """The 95 % interval of ``won - lost``, in rows (ALG-31)."""
        return bootstrap_interval(won=self.won, lost=self.lost, rows=self.rows)

    @property
    def is_better(self) -> bool:
        """Whether the interval lies above zero."""
        return self.interval[0] > 0

    def cells(self) -> tuple[str, str, str, str]:
        """Rows, both models' share of them, and the difference with its interval."""
        low, high = self.interval
        return (
            str(self.rows),
            percent(self.baseline, self.rows),
            percent(self.tuned, self.rows),
            f"{points(self.won - self.lost, self.rows)} "
            f"[{points(low, self.rows)}, {points(high, self.rows)}]",
        )


@dataclass(frozen=True, kw_only=True)
class OverSeeds:
    """How two models did on the same rows, of each of several seeds.

    Attributes:
        each: What they did, two seeds or more.
    """

    each: tuple[Difference, ...]

    def __post_init__(self) -> None:
        """Refuse other rows.

        Raises:
            InvalidRecordError: Two seeds are not of as many rows.
        """
        counts = sorted({one.rows for one in self.each})
        if len(counts) != 1:
            raise InvalidRecordError(
                "the seeds were not asked as many rows",
                expected=f"{counts[0]} rows",
                actual=f"{counts[-1]} rows",
            )

    @property
    def rows(self) -> int:
        """Rows of all seeds together."""
        return sum(one.rows for one in self.each)

    @property
    def interval(self) -> tuple[Fraction, Fraction]:
        """The 95 % interval of the mean over seeds of ``won - lost``, in rows of one (ALG-35)."""
        return student_interval([one.won - one.lost for one in self.each])

    @property
    def is_better(self) -> bool:
        """Whether the interval lies above zero."""
        return self.interval[0] > 0

    def cells(self) -> tuple[str, str, str, str]:
        """Rows and seeds, both models' mean share, and the mean difference with its interval."""
        rows = self.each[0].rows
        low, high = (points(end.numerator, end.denominator * rows) for end in self.interval)
        won = sum(one.won - one.lost for one in self.each)
        return (
            f"{rows}, {len(self.each)} seeds",
            percent(sum(one.baseline for one in self.each), self.rows),
            percent(sum(one.tuned for one in self.each), self.rows),
            f"{points(won, self.rows)} [{low}, {high}]",
        )


def student_interval(sums: Sequence[int]) -> tuple[Fraction, Fraction]:
    """The 95 % interval of the mean of `sums` by Student's t.

    Its half is the quantile times the root of the mean's variance, rounded up to thousandths.
    """
    count = len(sums)
    mean = Fraction(sum(sums), count)
    variance = sum(((one - mean) ** 2 for one in sums), Fraction(0)) / (count * (count - 1))
    square = Fraction(QUANTILES[count - 2]) ** 2 * variance
    half = Fraction(root_above(square * 1_000_000), 1000)
    return mean - half, mean + half


def root_above(value: Fraction) -> int:
    """The least whole number whose square is not below `value`."""
    whole = math.ceil(value)
    return math.isqrt(whole - 1) + 1 if whole else 0


def bootstrap_interval(*, won: int, lost: int, rows: int) -> tuple[int, int]:
    """The percentile interval at 95 % of the paired bootstrap, without drawing anything.

    A bootstrap draws `rows` rows with replacement, and sums 1 for a row that the tuned model alone
    had right, -1 for one that the baseline alone had right. How many of the draws, all equally
    likely, give a sum is a coefficient of (lost + tied x + won x^2)^rows: whole numbers, no seed.

    Returns:
        The least sums that at least 2.5 % and at least 97.5 % of the draws do not exceed.
    """
    coefficients = power((lost, rows - won - lost, won), rows)
    total = rows**rows
    below = list(accumulate(coefficients))
    low = next(at for at, count in enumerate(below) if 40 * count >= total)
    high = next(at for at, count in enumerate(below) if 40 * count >= 39 * total)
    return low - rows, high - rows


def power(polynomial: tuple[int, int, int], exponent: int) -> list[int]:
    """The coefficients of a power of ``a + b x + c x^2``, by the recurrence of its derivative."""
    zeros = next(at for at, value in enumerate(polynomial) if value)
    a, b, c = (*polynomial[zeros:], 0, 0)[:3]
    found = [a**exponent]
    for k in range(1, (2 - zeros) * exponent + 1):
        before = found[k - 2] if k > 1 else 0
        one = (exponent - k + 1) * b * found[k - 1] + (2 * exponent - k + 2) * c * before
        found.append(one // (k * a))
    return [0] * (zeros * exponent) + found


def percent(part: int, whole: int) -> str:
    """`part` of `whole` in percent, one place, halves away from zero."""
    tenths = (2000 * abs(part) + whole) // (2 * whole)
    return f"{'-' if part < 0 and tenths else ''}{tenths // 10}.{tenths % 10}"


def points(part: int, whole: int) -> str:
    """The same with its sign."""
    return ("+" if part > 0 else "") + percent(part, whole)
