"""Readings of a step's parameters within bounds."""

from __future__ import annotations

from kolm_build.core.decimals import parse_decimal
from kolm_build.core.fields import Fields
from kolm_build.errors import InvalidRecordError


def count(fields: Fields, name: str, default: int, *, least: int = 1) -> int:
    """The integer under `name`, `least` or more."""
    value = fields.integer(name, default=default)
    if not least <= value < 1 << 31:
        raise InvalidRecordError(
            "out of range", where=name, expected=f"{least} or more", actual=str(value)
        )
    return value


def decimal(fields: Fields, name: str, default: str, *, least: float, most: float) -> float:
    """The decimal number under `name`, from `least` to `most`, as the nearest binary64."""
    text = fields.text(name, default=default)
    try:
        value = float(parse_decimal(text))
    except InvalidRecordError as error:
        raise error.under(name) from None
    if not least <= value <= most:
        raise InvalidRecordError(
            "out of range", where=name, expected=f"{least:g} to {most:g}", actual=text
        )
    return value


def choice(fields: Fields, name: str, default: str, choices: tuple[str, ...]) -> str:
    """The word under `name`, one of `choices`."""
    value = fields.text(name, default=default)
    if value not in choices:
        raise InvalidRecordError(
            "unknown value", where=name, expected=" or ".join(choices), actual=repr(value)
        )
    return value
