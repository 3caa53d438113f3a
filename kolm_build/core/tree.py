"""Trees: a folder's names and contents, and nothing else of it (spec/tree.md).

A tree has no times, owners, or extended attributes. Its digest is that of its canonical record;
subfolders enter by digest, so equal subfolders are stored once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from kolm_build.core import cbor
from kolm_build.core.digest import Digest, RecordKind, Sha256
from kolm_build.core.fields import Fields
from kolm_build.core.name import parse_entry
from kolm_build.errors import InvalidRecordError

VERSION = 1
MAX_LINK_BYTES = 4095


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file: its blob's two digests and size, and whether it may be executed."""

    b3: Digest
    sha256: Sha256
    size_bytes: int
    executable: bool = False

    def to_value(self) -> dict[str, object]:
        """The entry's plain value."""
        return {
            "type": "file",
            "b3": self.b3.raw,
            "sha256": self.sha256.raw,
            "size": self.size_bytes,
            "exec": self.executable,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A symbolic link: relative, and never out of the tree that is restored."""

    target: str

    def to_value(self) -> dict[str, object]:
        """The entry's plain value."""
        return {"type": "link", "target": self.target}


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """A subfolder, by the digest of its own tree."""

    tree: Digest

    def to_value(self) -> dict[str, object]:
        """The entry's plain value."""
        return {"type": "tree", "tree": self.tree.raw}


Node = File | Link | Folder


def _node(value: object) -> Node:
    fields = Fields(value)
    kind = fields.text("type")
    node: Node
    if kind == "file":
        node = File(
            b3=Digest(fields.take("b3", bytes)),
            sha256=Sha256(fields.take("sha256", bytes)),
            size_bytes=fields.integer("size"),
            executable=fields.flag("exec"),
        )
        if node.size_bytes < 0:
            raise InvalidRecordError("a negative size", where="size", actual=str(node.size_bytes))
    elif kind == "link":
        node = Link(target=fields.text("target"))
    elif kind == "tree":
        node = Folder(tree=Digest(fields.take("tree", bytes)))
    else:
        raise InvalidRecordError(
            "unknown entry type", where="type", expected="file, link or tree", actual=repr(kind)
        )
    fields.done()
    return node


def _check_link(target: str) -> None:
    parts = target.split("/")
    if (
        not target
        or target.startswith("/")
        or "\x00" in target
        or len(target.encode()) > MAX_LINK_BYTES
    ):
        raise InvalidRecordError("a link must be relative and short", actual=ascii(target)[:90])
    if parts.count("..") and parts != [".."] * parts.count("..") + parts[parts.count("..") :]:
        raise InvalidRecordError("a link may climb only at its start", actual=ascii(target)[:90])


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """A folder's entries, sorted by name as UTF-8 bytes.

    Attributes:
        entries: (name, node) pairs; use `of` to make one from any order.

    Raises:
        InvalidRecordError: A name is bad, repeated, out of order, or equal to another when
            case is folded.
    """

    entries: tuple[tuple[str, Node], ...]

    def __post_init__(self) -> None:
        folded: dict[str, str] = {}
        last = b""
        for name, node in self.entries:
            key = parse_entry(name).encode()
            if key <= last:
                raise InvalidRecordError("entries out of order or repeated", where=name)
            last = key
            other = folded.setdefault(name.casefold(), name)
            if other != name:
                raise InvalidRecordError(
                    "two names that differ only in case", where=name, actual=other
                )
            if isinstance(node, Link):
                _check_link(node.target)

    @classmethod
    def of(cls, entries: Iterable[tuple[str, Node]]) -> Self:
        """The tree of `entries`, in any order."""
        return cls(entries=tuple(sorted(entries, key=lambda entry: entry[0].encode())))

    def to_value(self) -> dict[str, object]:
        """The record's plain value."""
        return {
            "v": VERSION,
            "entries": [[name, node.to_value()] for name, node in self.entries],
        }

    @classmethod
    def from_value(cls, value: object) -> Self:
        """The inverse of `to_value`, strict."""
        fields = Fields(value)
        fields.version(VERSION)
        fields.require("entries")
        entries = fields.records("entries", _entry)
        fields.done()
        return cls(entries=entries)

    def encode(self) -> bytes:
        """The canonical bytes."""
        return cbor.encode(self.to_value())

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The inverse of `encode`, strict."""
        return cls.from_value(cbor.decode(data))

    @property
    def digest(self) -> Digest:
        """The tree's content digest."""
        return Digest.of_record(self.encode(), RecordKind.TREE)

    def get(self, name: str) -> Node | None:
        """The node called `name`, or None."""
        return dict(self.entries).get(name)


def _entry(value: object) -> tuple[str, Node]:
    if not isinstance(value, list | tuple) or len(value) != 2 or type(value[0]) is not str:
        raise InvalidRecordError("an entry is a name and a node")
    try:
        return value[0], _node(value[1])
    except InvalidRecordError as error:
        raise error.under(value[0]) from None
