"""Decimal numbers as text: how a record holds a number that is not whole (spec/recipe.md)."""

from __future__ import annotations

import re
from decimal import ROUND_HALF_EVEN, Context, Decimal

from kolm_build.errors import InvalidRecordError

PLACES = Decimal("0.0001")
CONTEXT = Context(prec=60, rounding=ROUND_HALF_EVEN)
"""Wide enough that no step of the K-score rounds before its end."""

_DECIMAL = re.compile(r"-?[0-9]{1,20}(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,2})?")


def parse_decimal(text: str) -> Decimal:
    """The number that `text` spells.

    Raises:
        InvalidRecordError: It is not digits with an optional sign, fraction and exponent.
    """
    if not _DECIMAL.fullmatch(text):
        raise InvalidRecordError(
            "not a decimal number", expected="such as 0.85 or 1e-3", actual=repr(text)[:80]
        )
    return Decimal(text)


def render_decimal(number: Decimal) -> str:
    """The shortest plain text of `number`: no exponent, no trailing zeros, no negative zero."""
    text = format(number, "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def four_places(number: Decimal) -> Decimal:
    """`number` rounded half to even at the fourth decimal place."""
    return number.quantize(PLACES, context=CONTEXT)
