"""Environments: the interpreter and the distributions a step can import (spec/derivation.md)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from kolm_build.core import cbor
from kolm_build.core.digest import Digest, RecordKind
from kolm_build.core.fields import Fields
from kolm_build.errors import InvalidRecordError

VERSION = 1

_NAME = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.!+_-]{0,63}")


def parse_distribution_name(text: str) -> str:
    """`text` as the normalised name of a distribution (PEP 503).

    Raises:
        InvalidRecordError: It has no normal form.
    """
    name = re.sub(r"[-_.]+", "-", text).lower()
    if len(name) > 128 or not _NAME.fullmatch(name):
        raise InvalidRecordError("not the name of a distribution", actual=repr(text)[:80])
    return name


@dataclass(frozen=True, slots=True, order=True, kw_only=True)
class Distribution:
    """An installed distribution.

    Attributes:
        name: Its normalised name.
        version: Its version, as it says.
        content: Tree digest of its installed files.
    """

    name: str
    version: str
    content: Digest

    def __post_init__(self) -> None:
        if parse_distribution_name(self.name) != self.name:
            raise InvalidRecordError("not a normalised name", where="name", actual=repr(self.name))
        if not _VERSION.fullmatch(self.version):
            raise InvalidRecordError(
                "not a version", where="version", actual=repr(self.version)[:80]
            )

    def to_value(self) -> dict[str, object]:
        """The plain value."""
        return {"name": self.name, "version": self.version, "content": self.content.raw}

    @classmethod
    def from_value(cls, value: object) -> Self:
        """The inverse of `to_value`, strict."""
        fields = Fields(value)
        made = cls(
            name=fields.text("name"),
            version=fields.text("version"),
            content=Digest(fields.take("content", bytes)),
        )
        fields.done()
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What a step's process is made of, apart from its code.

    Attributes:
        python: The interpreter's version, such as ``3.11.7``.
        interpreter: Tree digest of the interpreter and its standard library.
        distributions: Sorted by name, one of each.
    """

    python: str
    interpreter: Digest
    distributions: tuple[Distribution, ...]

    def __post_init__(self) -> None:
        if not _VERSION.fullmatch(self.python):
            raise InvalidRecordError("not a version", where="python", actual=repr(self.python)[:80])
        names = [distribution.name for distribution in self.distributions]
        if names != sorted(set(names)):
            raise InvalidRecordError("names out of order or repeated", where="distributions")

    @classmethod
    def of(cls, *, python: str, interpreter: Digest, distributions: Iterable[Distribution]) -> Self:
        """The environment of `distributions`, given in any order."""
        return cls(
            python=python, interpreter=interpreter, distributions=tuple(sorted(distributions))
        )

    def to_value(self) -> dict[str, object]:
        """The record's plain value."""
        return {
            "v": VERSION,
            "python": self.python,
            "interpreter": self.interpreter.raw,
            "distributions": [distribution.to_value() for distribution in self.distributions],
        }

    @classmethod
    def from_value(cls, value: object) -> Self:
        """The inverse of `to_value`, strict."""
        fields = Fields(value)
        fields.version(VERSION)
        fields.require("distributions")
        made = cls(
            python=fields.text("python"),
            interpreter=Digest(fields.take("interpreter", bytes)),
            distributions=fields.records("distributions", Distribution.from_value),
        )
        fields.done()
        return made

    def encode(self) -> bytes:
        """The canonical bytes."""
        return cbor.encode(self.to_value())

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The inverse of `encode`, strict."""
        return cls.from_value(cbor.decode(data))

    @property
    def digest(self) -> Digest:
        """The environment's digest, which derivations name."""
        return Digest.of_record(self.encode(), RecordKind.ENVIRONMENT)
