"""Typed readings of one key, within bounds: what a recipe may say is narrower than its types."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import TypeVar

from kolm_build.core.decimals import parse_decimal, render_decimal
from kolm_build.core.derivation import Param
from kolm_build.core.fields import Fields, shown
from kolm_build.core.name import parse_label
from kolm_build.errors import InvalidRecordError

T = TypeVar("T")

Params = tuple[tuple[str, Param], ...]
"""Sorted (name, text or integer) pairs."""

MANY = (1 << 31) - 1


def unknown_name(
    what: str, name: str, known: Iterable[str], *, where: str | None = None
) -> InvalidRecordError:
    """The error that says there is no `what` of this name, with the nearest one that is."""
    names = sorted(known)
    near = get_close_matches(name, names, 1)
    return InvalidRecordError(
        f"unknown {what}",
        where=where,
        expected="one of " + ", ".join(names[:12]) + (", …" if len(names) > 12 else ""),
        actual=repr(name)[:80],
        advice=f"Did you mean {near[0]!r}?" if near else None,
    )


def texts(fields: Fields, name: str, parse: Callable[[str], T]) -> tuple[T, ...]:
    """The array of texts under `name`, each as `parse` reads it; empty where it is absent."""

    def read(item: object) -> T:
        if type(item) is not str:
            raise InvalidRecordError("wrong type", expected="text", actual=shown(item))
        return parse(item)

    return fields.records(name, read)


def params(fields: Fields, name: str) -> Params:
    """The table of texts and integers under `name`; empty where it is absent."""
    table = fields.table(name)
    for key, value in table.items():
        where = f"{name}.{key}"
        try:
            parse_label(key)
        except InvalidRecordError as error:
            raise error.under(where) from None
        if type(value) is not str and type(value) is not int:
            raise InvalidRecordError(
                "wrong type", where=where, expected="text or an integer", actual=shown(value)
            )
    return tuple((key, table[key]) for key in sorted(table))  # type: ignore[misc]  # checked


def choice(
    fields: Fields, name: str, options: tuple[str, ...], *, default: str | None = None
) -> str:
    """The text under `name`, one of `options`."""
    text = fields.text(name) if default is None else fields.text(name, default=default)
    if text not in options:
        raise unknown_name(name, text, options, where=name)
    return text


def integer(
    fields: Fields, name: str, *, least: int, most: int = MANY, default: int | None = None
) -> int:
    """The integer under `name`, from `least` to `most`."""
    number = fields.integer(name) if default is None else fields.integer(name, default=default)
    if not least <= number <= most:
        raise InvalidRecordError(
            "out of range", where=name, expected=f"{least} to {most}", actual=str(number)
        )
    return number


def decimal(fields: Fields, name: str, *, most: str, default: str) -> str:
    """The decimal number under `name`, from 0 to `most`, in its plain form.

    So 1e-3 and 0.001 are one recipe.
    """
    text = fields.text(name, default=default)
    try:
        number = parse_decimal(text)
    except InvalidRecordError as error:
        raise error.under(name) from None
    if not 0 <= number <= parse_decimal(most):
        raise InvalidRecordError(
            "out of range", where=name, expected=f"0 to {most}", actual=repr(text)
        )
    return render_decimal(number)
