"""Packs: everything that a rebuild needs, in one file (spec/kolmpack.md).

A pack is a prefix, a head and the bytes of objects. The head lists every object with its size and
digest before the first of them comes, so a reader knows at once what it will get, refuses what
does not fit, and checks each object as it comes. The digest of the head is the pack's id: it
commits to every byte of the file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from itertools import pairwise
from typing import NamedTuple, Self, TypeVar

from kolm_build.core import cbor
from kolm_build.core.digest import DIGEST_BYTES, Digest, RecordKind
from kolm_build.core.fields import Fields
from kolm_build.core.name import parse_label
from kolm_build.core.numerics import CLASSES
from kolm_build.errors import InvalidRecordError, KolmError, PackDamagedError, PackError

VERSION = 1
MAGIC = b"kolmpack 1\n"
MAGIC_NAME = b"kolmpack "
PREFIX_BYTES = len(MAGIC) + 8 + DIGEST_BYTES
MAX_HEAD_BYTES = 64 << 20
MAX_TOTAL_BYTES = 1 << 50
MAX_RECORDS_BYTES = 256 << 20
"""Of all objects but blobs and logs together: what a reader may have to keep in mind."""

LOG = "log"
"""The key in a claim's circumstances under which its log's digest stands."""

_LENGTH = struct.Struct("<Q")
_ROW = struct.Struct(f"<B{DIGEST_BYTES}sQ")

T = TypeVar("T")


class PackKind(IntEnum):
    """What an object is; the number stands in the table. Records come before what they name."""

    DERIVATION = 0
    TREE = 1
    CLAIM = 2
    JOIN = 3
    LOG = 4
    BLOB = 5


MAX_BYTES: Mapping[PackKind, int] = {
    PackKind.DERIVATION: 1 << 20,
    PackKind.TREE: 64 << 20,
    PackKind.CLAIM: 4 << 20,
    PackKind.JOIN: 64 << 20,
    PackKind.LOG: 256 << 20,
    PackKind.BLOB: 1 << 48,
}
"""How large an object of each kind may be."""


class Part(StrEnum):
    """What an object is in a pack for; one that serves two counts for the first of them."""

    FETCHED = "fetched"
    CODE = "code"
    INPUTS = "inputs"
    ENVIRONMENTS = "environments"
    PROJECT = "project"
    OUTPUTS = "outputs"
    DERIVATIONS = "derivations"
    CLAIMS = "claims"
    LOGS = "logs"


class Entry(NamedTuple):
    """One object in the table.

    Attributes:
        kind: What it is.
        digest: Its name; of a join, the digest of the whole that it describes.
        size_bytes: The number of its bytes in the file.
    """

    kind: PackKind
    digest: Digest
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """An output that the pack delivers, or the means to build it.

    Attributes:
        label: Its name, ``node`` or ``node.output``.
        derivation: What makes it.
        output: Which of its outputs.
        content: What came out; None where it was never built.
    """

    label: str
    derivation: Digest
    output: str
    content: Digest | None

    def __post_init__(self) -> None:
        parse_label(self.label)
        parse_label(self.output)

    def to_value(self) -> dict[str, object]:
        """The plain value."""
        return {
            "label": self.label,
            "derivation": self.derivation.raw,
            "output": self.output,
            "content": None if self.content is None else self.content.raw,
        }

    @classmethod
    def from_value(cls, value: object) -> Self:
        """The inverse of `to_value`, strict."""
        fields = Fields(value)
        content = fields.nullable("content", bytes)
        made = cls(
            label=fields.text("label"),
            derivation=Digest(fields.take("derivation", bytes)),
            output=fields.text("output"),
            content=None if content is None else Digest(content),
        )
        fields.done()
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What a pack says before its objects.

    Attributes:
        name: The project's name.
        targets: Sorted by label, at least one.
        project: The tree with recipe, lock, expected outputs, trust roots and attestations.
        environments: Environment to the tree that holds it; those that travel.
        classes: The numerics classes of all its derivations, sorted. The number in a class's name
            is the version of its specification.
        objects: Every object, sorted by kind and digest.
        needs: Objects of an earlier delivery that a thin pack leaves out, sorted.
        left_out: Contents of outputs that are to be built, sorted.
    """

    name: str
    targets: tuple[Target, ...]
    project: Digest
    environments: tuple[tuple[Digest, Digest], ...]
    classes: tuple[str, ...]
    objects: tuple[Entry, ...]
    needs: tuple[Entry, ...]
    left_out: tuple[Digest, ...]

    def __post_init__(self) -> None:
        parse_label(self.name)
        if not self.targets:
            raise InvalidRecordError("a pack has at least one target", where="targets")
        _check_sorted([one.label for one in self.targets], "targets")
        _check_sorted([one for one, _ in self.environments], "environments")
        _check_sorted(self.classes, "numerics")
        _check_sorted(self.left_out, "left_out")
        if not set(self.classes) <= set(CLASSES):
            raise InvalidRecordError(
                "unknown numerics class",
                where="numerics",
                expected=", ".join(CLASSES),
                actual=", ".join(self.classes)[:80],
            )
        _check_entries(self.objects, self.needs)

    @property
    def size_bytes(self) -> int:
        """The size of all objects together."""
        return sum(entry.size_bytes for entry in self.objects)

    def to_value(self) -> dict[str, object]:
        """The record's plain value."""
        return {
            "v": VERSION,
            "name": self.name,
            "targets": [one.to_value() for one in self.targets],
            "project": self.project.raw,
            "environments": [[one.raw, tree.raw] for one, tree in self.environments],
            "numerics": list(self.classes),
            "objects": _table(self.objects),
            "needs": _table(self.needs),
            "left_out": [one.raw for one in self.left_out],
        }

    @classmethod
    def from_value(cls, value: object) -> Self:
        """The inverse of `to_value`, strict."""
        fields = Fields(value)
        fields.version(VERSION)
        fields.require("targets", "environments", "numerics", "left_out")
        made = cls(
            name=fields.text("name"),
            targets=fields.records("targets", Target.from_value),
            project=Digest(fields.take("project", bytes)),
            environments=fields.records("environments", _pair),
            classes=fields.records("numerics", _text),
            objects=_entries(fields.take("objects", bytes)),
            needs=_entries(fields.take("needs", bytes)),
            left_out=fields.records("left_out", _digest),
        )
        fields.done()
        return made

    def encode(self) -> bytes:
        """The canonical bytes."""
        return cbor.encode(self.to_value())

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The inverse of `encode`, strict.

        Raises:
            InvalidRecordError: It is not a head, or not its one encoding.
        """
        made = cls.from_value(cbor.decode(data))
        if made.encode() != data:
            raise InvalidRecordError("the head is not written as its values are")
        return made


def prefix(head: bytes) -> bytes:
    """What stands before `head` in the file: the magic, its length, its digest."""
    return MAGIC + _LENGTH.pack(len(head)) + pack_id(head).raw


def pack_id(head: bytes) -> Digest:
    """The id of the pack with this head."""
    return Digest.of_record(head, RecordKind.KOLMPACK)


def parse_prefix(data: bytes) -> tuple[int, Digest]:
    """The length and digest of the head behind the first `PREFIX_BYTES` bytes of a file.

    Raises:
        PackError: It is no pack, or one of another version.
        PackDamagedError: It is cut off, or its head would be too large.
    """
    if not data.startswith(MAGIC):
        raise _no_pack(data)
    if len(data) < PREFIX_BYTES:
        raise PackDamagedError("the pack is cut off in its prefix", actual=f"{len(data)} bytes")
    (length,) = _LENGTH.unpack_from(data, len(MAGIC))
    if not 0 < length <= MAX_HEAD_BYTES:
        raise PackDamagedError(
            "a head of impossible length",
            expected=f"1 to {MAX_HEAD_BYTES} bytes",
            actual=f"{length} bytes",
        )
    return length, Digest(data[PREFIX_BYTES - DIGEST_BYTES : PREFIX_BYTES])


def parse_head(data: bytes, expected: Digest) -> Head:
    """The head that `data` is, if it has the digest `expected`.

    Raises:
        PackDamagedError: It has another.
        PackError: It is not a head.
    """
    if pack_id(data) != expected:
        raise PackDamagedError(
            "the head is damaged", expected=str(expected), actual=str(pack_id(data))
        )
    try:
        return Head.decode(data)
    except KolmError as error:
        raise as_pack_error(error).under("head") from None


def as_pack_error(error: KolmError) -> PackError:
    """`error`, found in a pack."""
    return PackError(
        error.reason,
        file=error.file,
        where=error.where,
        expected=error.expected,
        actual=error.actual,
        advice=error.advice,
    )


def _no_pack(data: bytes) -> PackError:
    newer = data.startswith(MAGIC_NAME) or not data
    return PackError(
        "a pack of another version" if data.startswith(MAGIC_NAME) else "not a kolmpack",
        expected=repr(MAGIC),
        actual=repr(data[: len(MAGIC)]),
        advice="A newer kolm wrote this; read it with that version." if newer and data else None,
    )


def _table(entries: Iterable[Entry]) -> bytes:
    return b"".join(_ROW.pack(one.kind, one.digest.raw, one.size_bytes) for one in entries)


def _entries(data: bytes) -> tuple[Entry, ...]:
    if len(data) % _ROW.size:
        raise InvalidRecordError("a row of the table is cut off", actual=f"{len(data)} bytes")
    kinds = {int(kind): kind for kind in PackKind}
    rows = []
    for number, raw, size in _ROW.iter_unpack(data):
        if number not in kinds:
            raise InvalidRecordError("an object of unknown kind", actual=str(number))
        rows.append(Entry(kinds[number], Digest(raw), size))
    return tuple(rows)


def _check_entries(objects: tuple[Entry, ...], needs: tuple[Entry, ...]) -> None:
    """Refuse tables out of order, objects in both, and sizes out of bounds."""
    for where, entries in (("objects", objects), ("needs", needs)):
        _check_sorted([one[:2] for one in entries], where)
        for one in entries:
            if one.size_bytes > MAX_BYTES[one.kind]:
                raise InvalidRecordError(
                    "too large an object",
                    where=f"{where}.{one.digest}",
                    expected=f"at most {MAX_BYTES[one.kind]} bytes",
                    actual=f"{one.size_bytes} bytes",
                )
    _check_apart(objects, needs)
    records = sum(one.size_bytes for one in objects if one.kind < PackKind.LOG)
    if records > MAX_RECORDS_BYTES:
        raise InvalidRecordError("too many records", actual=f"{records} bytes")
    if sum(one.size_bytes for one in objects) > MAX_TOTAL_BYTES:
        raise InvalidRecordError("too large a pack")


def _check_apart(objects: tuple[Entry, ...], needs: tuple[Entry, ...]) -> None:
    """Refuse bytes that are there twice: as one blob and as parts, or carried and needed."""
    contents = [
        one.digest for one in (*objects, *needs) if one.kind in (PackKind.BLOB, PackKind.JOIN)
    ]
    trees = [one.digest for one in (*objects, *needs) if one.kind is PackKind.TREE]
    for digests in (contents, trees):
        if len(set(digests)) != len(digests):
            raise InvalidRecordError("an object is there twice", where="objects")
    if any(one.kind not in (PackKind.TREE, PackKind.BLOB) for one in needs):
        raise InvalidRecordError("only trees and blobs may be left out", where="needs")


def _check_sorted(items: Iterable[T], where: str) -> None:
    found = list(items)
    if any(not one < two for one, two in pairwise(found)):  # type: ignore[operator]  # texts, digests, tuples of them
        raise InvalidRecordError("entries out of order or repeated", where=where)


def _pair(value: object) -> tuple[Digest, Digest]:
    match value:
        case [bytes(one), bytes(two)]:
            return Digest(one), Digest(two)
        case _:
            raise InvalidRecordError("two digests belong here")


def _digest(value: object) -> Digest:
    if type(value) is not bytes:
        raise InvalidRecordError("a digest belongs here")
    return Digest(value)


def _text(value: object) -> str:
    if type(value) is not str:
        raise InvalidRecordError("text belongs here")
    return value
