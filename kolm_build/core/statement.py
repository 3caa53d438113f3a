"""In-toto statements, version 1: what a signature over an artifact says (spec/artifact.md).

A statement names its subjects by both digests and carries a predicate. It knows nothing of keys
or envelopes. Needs the standard library alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from kolm_build.core import strict_json
from kolm_build.core.fields import Fields
from kolm_build.errors import InvalidRecordError

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
BUILT = "urn:kolm:predicate:built:1"

_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What a statement is about.

    Attributes:
        name: Its name, for people.
        sha256: 64 lower-case hex digits.
        blake3: 64 lower-case hex digits.
    """

    name: str
    sha256: str
    blake3: str

    def __post_init__(self) -> None:
        if not 1 <= len(self.name) <= 255:
            raise InvalidRecordError("a subject needs a name", where="name", actual=self.name[:80])
        for algorithm in ("sha256", "blake3"):
            text = getattr(self, algorithm)
            if not _HEX.fullmatch(text):
                raise InvalidRecordError(
                    "not a digest",
                    where=f"digest.{algorithm}",
                    expected="64 lower-case hex digits",
                    actual=repr(text)[:80],
                )

    def to_value(self) -> dict[str, object]:
        """The plain value."""
        return {"name": self.name, "digest": {"sha256": self.sha256, "blake3": self.blake3}}

    @classmethod
    def from_value(cls, value: object) -> Self:
        """The inverse of `to_value`, strict: both digests and no others."""
        fields = Fields(value)
        digests = Fields(fields.table("digest"))
        made = cls(
            name=fields.text("name"), sha256=digests.text("sha256"), blake3=digests.text("blake3")
        )
        digests.done()
        fields.done()
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """A claim about subjects.

    Attributes:
        subjects: At least one, each name once.
        predicate_type: What kind of claim, such as `BUILT`.
        predicate: The claim: values of strict JSON.
    """

    subjects: tuple[Subject, ...]
    predicate_type: str
    predicate: Mapping[str, object]

    def __post_init__(self) -> None:
        names = [subject.name for subject in self.subjects]
        if not names or len(set(names)) != len(names):
            raise InvalidRecordError(
                "subjects missing or named twice", where="subject", actual=", ".join(names)[:80]
            )

    def to_value(self) -> dict[str, object]:
        """The plain value."""
        return {
            "_type": STATEMENT_TYPE,
            "subject": [subject.to_value() for subject in self.subjects],
            "predicateType": self.predicate_type,
            "predicate": dict(self.predicate),
        }

    @classmethod
    def from_value(cls, value: object) -> Self:
        """The inverse of `to_value`, strict."""
        fields = Fields(value)
        found = fields.text("_type")
        if found != STATEMENT_TYPE:
            raise InvalidRecordError(
                "not an in-toto statement", where="_type", expected=STATEMENT_TYPE, actual=found
            )
        made = cls(
            subjects=fields.records("subject", Subject.from_value),
            predicate_type=fields.text("predicateType"),
            predicate=fields.table("predicate"),
        )
        fields.done()
        return made

    def encode(self) -> bytes:
        """The canonical JSON: what is signed."""
        return strict_json.dumps(self.to_value())

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The statement in `data`, which must be the one way to write it."""
        made = cls.from_value(strict_json.loads(data))
        if made.encode() != data:
            raise InvalidRecordError("a statement that is not canonical JSON")
        return made
