"""Provenance: where recorded answers of a teacher are from (spec/dataset.md).

A teacher behind somebody's door is no input that could be locked: what it answered is, and with it
who it was, when it was asked, under which licence it answers, and the log of the calls.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Self

from kolm_build.core.fields import Fields
from kolm_build.core.source import PATH, parse_path
from kolm_build.errors import InvalidRecordError

CALL_LOG = "call_log"
MAX_CHARACTERS = 200

_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_PREFIX = "provenance_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """Who answered.

    Attributes:
        vendor: Who runs the teacher.
        model: Which one it is, as the vendor names it.
        date: The last day on which it was asked, ``YYYY-MM-DD``.
        licence: The licence or terms of its answers.
    """

    vendor: str
    model: str
    date: str
    licence: str

    @classmethod
    def take(cls, fields: Fields, prefix: str = "") -> Self:
        """The teacher that `fields` describe, each key after `prefix`.

        Raises:
            InvalidRecordError: A key is missing, not a line of text, or not a day.
        """
        return cls(
            vendor=fields.parsed(f"{prefix}vendor", _line),
            model=fields.parsed(f"{prefix}model", _line),
            date=fields.parsed(f"{prefix}date", _day),
            licence=fields.parsed(f"{prefix}licence", _line),
        )

    @classmethod
    def of_params(cls, fields: Fields) -> Self | None:
        """The teacher that a derivation's parameters describe; None where they name none."""
        return cls.take(fields, _PREFIX) if fields.has(f"{_PREFIX}vendor") else None

    @property
    def params(self) -> Mapping[str, str]:
        """The parameters of a derivation that say so."""
        return {f"{_PREFIX}{name}": value for name, value in self.to_value().items()}

    def to_value(self) -> dict[str, str]:
        """The plain value."""
        return {
            "vendor": self.vendor,
            "model": self.model,
            "date": self.date,
            "licence": self.licence,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """The table ``[sets.NAME.provenance]``.

    Attributes:
        teacher: Who answered.
        call_log: Path of the log of the calls beside the recipe: a file, or a folder of some.
    """

    teacher: Teacher
    call_log: str


def read_provenance(value: object) -> Provenance:
    """The provenance in `value`, strict.

    Raises:
        InvalidRecordError: A key is missing, unknown, or not as it must be.
    """
    fields = Fields(value)
    made = Provenance(teacher=Teacher.take(fields), call_log=fields.parsed(CALL_LOG, _path))
    fields.done()
    return made


def _path(text: str) -> str:
    return parse_path(text.removeprefix(PATH))


def _line(text: str) -> str:
    if not text or text != text.strip() or not text.isprintable() or len(text) > MAX_CHARACTERS:
        raise InvalidRecordError(
            "not a name",
            expected=f"one line of at most {MAX_CHARACTERS} characters, no space around it",
            actual=repr(text)[:80],
        )
    return text


def _day(text: str) -> str:
    try:
        if not _DAY.fullmatch(text):
            raise ValueError
        date.fromisoformat(text)
    except ValueError:
        raise InvalidRecordError(
            "not a day", expected="YYYY-MM-DD, as text", actual=repr(text)[:80]
        ) from None
    return text
