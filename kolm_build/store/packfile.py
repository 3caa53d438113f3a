"""Reading packs: a file opened once, every object hashed as it is read (spec/kolmpack.md).

Nothing of a pack is believed before it was checked: the file's size against the head, every
record against its digest, the whole against the walk that says what belongs to it, and then every
blob, while it is read for whoever takes it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, Self, TypeVar

from blake3 import blake3

from kolm_build.core.closure import closure
from kolm_build.core.derivation import Derivation
from kolm_build.core.digest import Blob, Digest, Sha256
from kolm_build.core.kolmpack import (
    PREFIX_BYTES,
    Entry,
    Head,
    PackKind,
    as_pack_error,
    pack_id,
    parse_head,
    parse_prefix,
)
from kolm_build.core.tree import File, Folder, Tree
from kolm_build.errors import (
    InvalidRecordError,
    KolmError,
    PackDamagedError,
    PackError,
    PackIncompleteError,
)
from kolm_build.reading import PIECE_BYTES, open_regular, pread
from kolm_build.store.claims import StoredRealisation
from kolm_build.store.ingest import MAX_DEPTH
from kolm_build.store.join import Join
from kolm_build.store.packer import CONTEXTS
from kolm_build.store.reach import Reached, Roots, reach
from kolm_build.store.restore import record_digest

MAX_ENTRIES = 10_000_000
"""Of one tree with all below it."""
MAX_JOINED_TIMES = 64
"""So many times as large as the pack all its files in parts may be together."""
MAX_UNPACKED_TIMES = 1000
"""So many times as large as the pack one of its trees may be, unpacked."""
SLACK_BYTES = 1 << 30

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class PackFile:
    """An open pack whose head holds and whose size is right.

    Attributes:
        path: The file, for errors.
        fd: The open descriptor.
        id: The pack's id.
        head: Its head.
        offsets: Where each object begins.
    """

    path: str
    fd: int
    id: Digest
    head: Head
    offsets: Mapping[Entry, int] = field(repr=False)

    @classmethod
    def open(cls, path: Path) -> Self:
        """The pack in the file `path`.

        Raises:
            PackError: It is no pack, or its head is not what a head must be.
            PackDamagedError: The head is damaged, or the file is shorter or longer than it says.
        """
        fd = open_regular(path, PackError)
        try:
            return cls._read(fd, str(path))
        except KolmError as error:
            os.close(fd)
            raise error.in_file(str(path)) from None
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def _read(cls, fd: int, path: str) -> Self:
        size = os.fstat(fd).st_size
        length, digest = parse_prefix(_pread(fd, 0, min(PREFIX_BYTES, size)))
        if PREFIX_BYTES + length > size:
            raise PackDamagedError(
                "the pack is cut off in its head",
                expected=f"{PREFIX_BYTES + length} bytes or more",
                actual=f"{size} bytes",
            )
        data = _pread(fd, PREFIX_BYTES, length)
        head = parse_head(data, digest)
        offsets, at = {}, PREFIX_BYTES + length
        for entry in head.objects:
            offsets[entry] = at
            at += entry.size_bytes
        if at != size:
            raise PackDamagedError(
                "bytes after the last object" if size > at else "the pack is cut off",
                expected=f"{at} bytes",
                actual=f"{size} bytes",
            )
        return cls(path=path, fd=fd, id=pack_id(data), head=head, offsets=offsets)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def read(self, entry: Entry) -> bytes:
        """All bytes of an object, not yet checked."""
        return _pread(self.fd, self.offsets[entry], entry.size_bytes)

    def pieces(self, entry: Entry) -> Iterator[bytes]:
        """The bytes of an object of any size, not yet checked."""
        at, end = self.offsets[entry], self.offsets[entry] + entry.size_bytes
        while at < end:
            piece = os.pread(self.fd, min(PIECE_BYTES, end - at), at)
            if not piece:
                raise PackDamagedError("the pack became shorter while it was read")
            yield piece
            at += len(piece)

    def record(self, entry: Entry) -> bytes:
        """The bytes of a record, checked against its digest.

        Raises:
            PackDamagedError: They are others.
        """
        data = self.read(entry)
        check(entry, record_digest(data, CONTEXTS[entry.kind]))
        return data


@dataclass(slots=True)
class Records:
    """The records of a pack, read and checked: what the walk goes over.

    Attributes:
        derivations: Derivations by digest.
        trees: Trees by digest.
        claims: Claims by digest.
        joins: Joins by the digest of the whole.
        logs: The logs.
        needs: What is left to an earlier delivery.
    """

    derivations: dict[Digest, Derivation] = field(default_factory=dict)
    trees: dict[Digest, Tree] = field(default_factory=dict)
    claims: dict[Digest, StoredRealisation] = field(default_factory=dict)
    joins: dict[Digest, Join] = field(default_factory=dict)
    logs: set[Digest] = field(default_factory=set)
    needs: set[tuple[PackKind, Digest]] = field(default_factory=set)

    def derivation(self, digest: Digest) -> Derivation:
        """A derivation of the pack."""
        return _found(self.derivations, digest, "derivation")

    def tree(self, digest: Digest) -> Tree:
        """A tree of the pack."""
        return _found(self.trees, digest, "tree")

    def join(self, b3: Digest) -> Join | None:
        """The parts of a blob that comes in parts."""
        return self.joins.get(b3)

    def has_log(self, digest: Digest) -> bool:
        """Whether the pack has the log."""
        return digest in self.logs

    def stops(self, kind: PackKind, digest: Digest) -> bool:
        """Whether the pack leaves it to an earlier delivery."""
        return (kind, digest) in self.needs


def read_records(file: PackFile) -> Records:
    """Every record of a pack.

    Raises:
        PackDamagedError: One has not the digest that the head names.
        PackError: One is not what a record of its kind must be.
    """
    made = Records(needs={entry[:2] for entry in file.head.needs})
    readers: Mapping[PackKind, Callable[[Digest, bytes], None]] = {
        PackKind.DERIVATION: lambda b3, data: _put(made.derivations, b3, Derivation.decode(data)),
        PackKind.TREE: lambda b3, data: _put(made.trees, b3, Tree.decode(data)),
        PackKind.CLAIM: lambda b3, data: _put(made.claims, b3, _claim(data)),
    }
    for entry in file.head.objects:
        try:
            if entry.kind is PackKind.JOIN:
                made.joins[entry.digest] = _join(entry, file.read(entry))
            elif entry.kind is PackKind.LOG:
                made.logs.add(entry.digest)
            elif entry.kind is not PackKind.BLOB:
                readers[entry.kind](entry.digest, file.record(entry))
        except PackError:
            raise
        except InvalidRecordError as error:
            raise as_pack_error(error).under(f"{entry.kind.name.lower()} {entry.digest}") from None
    return made


def _claim(data: bytes) -> StoredRealisation:
    claim = StoredRealisation.decode(data)
    if claim.is_delivered:
        raise InvalidRecordError("the mark of another store's look at a claim", where="delivered")
    return claim


def check_whole(head: Head, records: Records) -> Reached:
    """What belongs to the pack, if that is exactly what it holds.

    Raises:
        PackIncompleteError: It lacks something, holds something that nothing names, or a file's
            size is not that of its bytes.
        PackError: It says something that its records do not.
    """
    roots = Roots(
        targets=head.targets,
        project=head.project,
        environments=head.environments,
        claims=records.claims,
        left_out=frozenset(head.left_out),
    )
    found = reach(records, roots)
    listed = {entry[:2] for entry in head.objects}
    _same(found.parts.keys(), listed, "object")
    _same(found.needs, {entry[:2] for entry in head.needs}, "object of an earlier delivery")
    _same(found.left_out, set(head.left_out), "output that is left out")
    both = records.trees.keys() & set(head.left_out)
    if both:
        raise PackIncompleteError("a tree is there and left out", actual=str(min(both)))
    _check_classes(head, found)
    _check_sizes(head, records, found)
    check_growth(head, records)
    return found


def check_blob(entry: Entry, actual: Blob, files: set[File]) -> None:
    """Refuse a blob that is not what its name, or a file that it is, says of it.

    Raises:
        PackDamagedError: Its bytes have another digest.
        PackIncompleteError: A tree names another SHA-256 or size for it.
    """
    check(entry, actual.b3)
    for file in files:
        if (file.sha256, file.size_bytes) != (actual.sha256, actual.size_bytes):
            raise PackIncompleteError(
                "a tree says something else of a file than its bytes do",
                where=f"blob {entry.digest}",
                expected=f"{file.sha256}, {file.size_bytes} bytes",
                actual=f"{actual.sha256}, {actual.size_bytes} bytes",
            )


def check(entry: Entry, actual: Digest) -> None:
    """Refuse an object whose bytes have another digest.

    Raises:
        PackDamagedError: They have.
    """
    if entry.digest != actual:
        raise PackDamagedError(
            "an object's bytes are not those that the head names",
            where=f"{entry.kind.name.lower()} {entry.digest}",
            expected=str(entry.digest),
            actual=str(actual),
            advice="The file was damaged on its way: get it again.",
        )


class Hasher:
    """Both digests of bytes that come piece by piece."""

    def __init__(self) -> None:
        self._b3, self._sha, self._size = blake3(), sha256(), 0

    def update(self, data: bytes | memoryview) -> None:
        """Take the next piece."""
        self._b3.update(data)
        self._sha.update(data)
        self._size += len(data)

    @property
    def blob(self) -> Blob:
        """What has come so far."""
        return Blob(
            b3=Digest(self._b3.digest()),
            sha256=Sha256(self._sha.digest()),
            size_bytes=self._size,
        )


def _join(entry: Entry, data: bytes) -> Join:
    try:
        join = Join.decode(data)
    except InvalidRecordError as error:
        raise PackDamagedError(
            "the record of a file in parts is damaged",
            where=f"join {entry.digest}",
            actual=error.reason,
        ) from None
    if join.encode() != data or not join.parts:
        raise PackError("not the one record of a file in parts", where=f"join {entry.digest}")
    check(entry, join.b3)
    return join


def _put(table: dict[Digest, T], digest: Digest, value: T) -> None:
    table[digest] = value


def _found(table: Mapping[Digest, T], digest: Digest, what: str) -> T:
    found = table.get(digest)
    if found is None:
        raise PackIncompleteError(f"the pack lacks a {what}", expected=str(digest))
    return found


def _same(reached: Set[object], listed: Set[object], what: str) -> None:
    missing, surplus = reached - listed, listed - reached
    if missing:
        raise PackIncompleteError(f"the pack lacks an {what}", expected=_shown(missing))
    if surplus:
        raise PackIncompleteError(
            f"an {what} that nothing in the pack names", actual=_shown(surplus)
        )


def _shown(some: Set[object]) -> str:
    first = min(some, key=str)
    if isinstance(first, tuple):
        return f"{first[0].name.lower()} {first[1]}"
    return str(first)


def _check_classes(head: Head, found: Reached) -> None:
    classes = tuple(sorted({made.numerics.cls for made in found.derivations.values()}))
    if classes != head.classes:
        raise PackError(
            "the head names other numerics than the derivations",
            where="head.numerics",
            expected=", ".join(classes),
            actual=", ".join(head.classes),
        )


def check_growth(head: Head, records: Records) -> None:
    """Refuse what would grow without bounds when it is put together or unpacked.

    A tree may be below another many times, and a blob in a file: few bytes can describe more
    files than any disk holds.

    Raises:
        PackError: It would.
    """
    carried = head.size_bytes + sum(entry.size_bytes for entry in head.needs)
    joined = sum(join.size_bytes for join in records.joins.values())
    if joined > MAX_JOINED_TIMES * carried + SLACK_BYTES:
        raise PackError(
            "files in parts that are far larger than all parts",
            expected=f"at most {MAX_JOINED_TIMES * carried + SLACK_BYTES} bytes",
            actual=f"{joined} bytes",
        )
    limit = MAX_UNPACKED_TIMES * carried + SLACK_BYTES
    grown: dict[Digest, _Grown] = {}
    for digest in closure(sorted(records.trees), lambda one: _folders(records, one)):
        tree = records.trees.get(digest)
        if tree is not None:
            grown[digest] = _grown(tree, grown)
            _check_grown(digest, grown[digest], limit)


class _Grown(NamedTuple):
    """What a tree is when it is unpacked, as far as the pack tells."""

    entries: int
    size_bytes: int
    depth: int


def _folders(records: Records, digest: Digest) -> list[Digest]:
    tree = records.trees.get(digest)
    return [node.tree for _, node in tree.entries if isinstance(node, Folder)] if tree else []


def _grown(tree: Tree, known: Mapping[Digest, _Grown]) -> _Grown:
    nothing = _Grown(0, 0, 0)
    below = [known.get(one.tree, nothing) for _, one in tree.entries if isinstance(one, Folder)]
    files = sum(one.size_bytes for _, one in tree.entries if isinstance(one, File))
    return _Grown(
        entries=len(tree.entries) + sum(one.entries for one in below),
        size_bytes=files + sum(one.size_bytes for one in below),
        depth=1 + max((one.depth for one in below), default=0),
    )


def _check_grown(digest: Digest, grown: _Grown, limit_bytes: int) -> None:
    if grown.entries > MAX_ENTRIES or grown.depth > MAX_DEPTH or grown.size_bytes > limit_bytes:
        raise PackError(
            "a tree that would be too large to unpack",
            where=f"tree {digest}",
            expected=f"{MAX_ENTRIES} entries, {MAX_DEPTH} levels and {limit_bytes} bytes at most",
            actual=f"{grown.entries} entries, {grown.depth} levels, {grown.size_bytes} bytes",
        )


def _check_sizes(head: Head, records: Records, found: Reached) -> None:
    """Refuse a file whose size in a tree, or in a join, is not that of the object."""
    sizes = {
        entry.digest: entry.size_bytes
        for entry in (*head.objects, *head.needs)
        if entry.kind is PackKind.BLOB
    }
    for join in records.joins.values():
        for part, size in join.parts:
            _check_size(part, size, sizes.get(part))
    sizes |= {b3: join.size_bytes for b3, join in records.joins.items()}
    for b3, files in found.files.items():
        for one in files:
            _check_size(b3, one.size_bytes, sizes.get(b3))


def _check_size(b3: Digest, said: int, actual: int | None) -> None:
    if said != actual:
        raise PackIncompleteError(
            "a file is said to have another size than its bytes",
            where=f"blob {b3}",
            expected=f"{said} bytes",
            actual=f"{actual} bytes",
        )


def _pread(fd: int, offset: int, length: int) -> bytes:
    data = pread(fd, offset, length)
    if len(data) < length:
        raise PackDamagedError("the pack became shorter while it was read")
    return data
