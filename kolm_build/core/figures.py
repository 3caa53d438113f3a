"""The figures of a training, from its table ``metrics.csv`` (ALG-6)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from kolm_build.errors import InvalidRecordError

STEP = "step"
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+(e[+-][0-9]+)?|e[+-][0-9]+)")
"""A binary64 as the table has it: a point or an exponent with a sign, which no digest has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One column of numbers.

    Attributes:
        name: What it is.
        values: Its value at each optimiser step, from the first; at least one.
    """

    name: str
    values: tuple[float, ...]

    def to_value(self) -> dict[str, object]:
        """Its first, last, least and greatest value, as the table has them."""
        first, last = self.values[0], self.values[-1]
        least, greatest = min(self.values), max(self.values)
        return {
            "first": repr(first),
            "last": repr(last),
            "least": repr(least),
            "greatest": repr(greatest),
        }


def read_figures(data: bytes) -> tuple[Figure, ...]:
    """The columns of numbers of a ``metrics.csv``, the step's own left out; text is none.

    Raises:
        InvalidRecordError: It is no such table, or has no step.
    """
    try:
        head, *rows = [line.split(",") for line in data.decode().splitlines()]
    except ValueError:
        raise _refused("no columns") from None
    for number, row in enumerate(rows, 1):
        if len(row) != len(head) or row[0] != str(number):
            raise _refused(f"line {number + 1}: {','.join(row)}"[:80])
    if head[0] != STEP or not rows:
        raise _refused(",".join(head)[:80])
    columns = zip(*rows, strict=True)
    return tuple(
        Figure(name=name, values=tuple(map(float, column)))
        for name, column in zip(head, columns, strict=True)
        if all(map(_NUMBER.fullmatch, column))
    )


def _refused(actual: str) -> InvalidRecordError:
    return InvalidRecordError(
        "not a table of a training's figures",
        file="metrics.csv",
        expected="columns from step on, a row for each step from 1",
        actual=actual,
    )
