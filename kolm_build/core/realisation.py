"""Realisations: the record that a resolved derivation's output has this content.

The record is what is compared byte for byte between builders. What happened around it (when, on
which machine, how long) travels beside it as circumstances and never enters the digest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from kolm_build.core import cbor
from kolm_build.core.digest import Digest, RecordKind
from kolm_build.core.fields import Fields
from kolm_build.core.name import parse_label

VERSION = 1


@dataclass(frozen=True, slots=True, order=True, kw_only=True)
class Realisation:
    """An output's content.

    Attributes:
        resolved: Digest of the resolved derivation.
        output: The output's name.
        content: Digest of the output's tree.
    """

    resolved: Digest
    output: str
    content: Digest

    def __post_init__(self) -> None:
        parse_label(self.output)

    def to_value(self) -> dict[str, object]:
        """The record's plain value."""
        return {
            "v": VERSION,
            "resolved": self.resolved.raw,
            "output": self.output,
            "content": self.content.raw,
        }

    @classmethod
    def from_value(cls, value: object) -> Self:
        """The inverse of `to_value`, strict."""
        fields = Fields(value)
        fields.version(VERSION)
        made = cls(
            resolved=Digest(fields.take("resolved", bytes)),
            output=fields.text("output"),
            content=Digest(fields.take("content", bytes)),
        )
        fields.done()
        return made

    def encode(self) -> bytes:
        """The canonical bytes."""
        return cbor.encode(self.to_value())

    @property
    def digest(self) -> Digest:
        """The record's digest."""
        return Digest.of_record(self.encode(), RecordKind.REALISATION)


def contents(realisations: Iterable[Realisation]) -> tuple[Digest, ...]:
    """The distinct contents that are claimed, sorted: none, one, or a contested several."""
    return tuple(sorted({realisation.content for realisation in realisations}))
