"""Trees: a folder's names and contents, and nothing else of it (spec/tree.md).

A tree has no times, owners, or extended attributes. Its digest is that of its canonical record;
subfolders enter by digest, so equal subfolders are stored once.
"""

from __future__ import annotations

import re
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

# A record's bytes, spelt out: a tree may have ten thousand files, and the general encoder and
# reader take four times as long. The tests hold the two together.
_START = b"\xa2\x61v\x01\x67entries"
_FILE_B3 = b"\xa5\x62b3\x58\x20"
_EXEC = {False: b"\x64exec\xf4\x64size", True: b"\x64exec\xf5\x64size"}
_FILE_SHA256 = b"\x64type\x64file\x66sha256\x58\x20"
_FOLDER = b"\xa2\x64tree\x58\x20"
_FOLDER_END = b"\x64type\x64tree"
_INTEGER = rb"[\x00-\x17]|\x18.|\x19.{2}|\x1a.{4}|\x1b.{8}"
_RECORD = re.compile(_START + rb"(?:[\x80-\x97]|\x98.|\x99.{2}|\x9a.{4})", re.DOTALL)
_ENTRY = re.compile(
    rb"\x82(?:[\x61-\x77]|\x78.)(?P<name>.+?)(?:"
    + _FILE_B3
    + rb"(?P<b3>.{32})\x64exec(?P<exec>[\xf4\xf5])\x64size(?P<size>"
    + _INTEGER
    + rb")"
    + _FILE_SHA256
    + rb"(?P<sha256>.{32})|"
    + _FOLDER
    + rb"(?P<tree>.{32})"
    + _FOLDER_END
    + rb")",
    re.DOTALL,
)


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
        return _START + cbor.array([_encoded(name, node) for name, node in self.entries])

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The inverse of `encode`, strict.

        Raises:
            InvalidRecordError: `data` is not what `encode` gives for any tree.
        """
        entries = _plain_entries(data)
        if entries is not None:
            tree = cls(entries=entries)
            if tree.encode() == data:
                return tree
        return cls.from_value(cbor.decode(data))

    @property
    def digest(self) -> Digest:
        """The tree's content digest."""
        return Digest.of_record(self.encode(), RecordKind.TREE)

    def get(self, name: str) -> Node | None:
        """The node called `name`, or None."""
        return dict(self.entries).get(name)


def _encoded(name: str, node: Node) -> bytes:
    """The entry's bytes: those of ``cbor.encode([name, node.to_value()])``."""
    parts: tuple[bytes, ...]
    if isinstance(node, File):
        size = _EXEC[node.executable] + cbor.natural(node.size_bytes)
        parts = (_FILE_B3, node.b3.raw, size, _FILE_SHA256, node.sha256.raw)
    elif isinstance(node, Folder):
        parts = (_FOLDER, node.tree.raw, _FOLDER_END)
    else:
        parts = (cbor.encode(node.to_value()),)
    return b"".join((b"\x82", cbor.text(name), *parts))


def _plain_entries(data: bytes) -> tuple[tuple[str, Node], ...] | None:
    """The entries of a record of files and folders, if it looks like one.

    It may look like one and be something else: only what encodes to the same bytes is one.
    """
    start = _RECORD.match(data)
    if start is None:
        return None
    entries = []
    at = start.end()
    while at < len(data):
        found = _ENTRY.match(data, at)
        if found is None:
            return None
        at = found.end()
        try:
            entries.append(_plain_entry(found))
        except UnicodeDecodeError:
            return None
    return tuple(entries)


def _plain_entry(found: re.Match[bytes]) -> tuple[str, Node]:
    name, b3, executable, size, sha256, tree = found.groups()
    if tree is not None:
        return name.decode(), Folder(tree=Digest(tree))
    node = File(
        b3=Digest(b3),
        sha256=Sha256(sha256),
        size_bytes=int.from_bytes(size[1:] or size, "big"),
        executable=executable == b"\xf5",
    )
    return name.decode(), node


def _entry(value: object) -> tuple[str, Node]:
    if not isinstance(value, list | tuple) or len(value) != 2 or type(value[0]) is not str:
        raise InvalidRecordError("an entry is a name and a node")
    try:
        return value[0], _node(value[1])
    except InvalidRecordError as error:
        raise error.under(value[0]) from None
