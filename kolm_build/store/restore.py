"""From the store back to files: every byte is hashed again on the way out.

What is hashed is the copy that the caller gets, so a swapped or damaged object cannot slip
through. Nobody is ever given a link to an object.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from blake3 import blake3

from kolm_build.core.digest import Blob, Digest, RecordKind, Sha256
from kolm_build.core.tree import File, Folder, Link, Tree
from kolm_build.errors import (
    CorruptObjectError,
    InvalidRecordError,
    MissingObjectError,
    StoreError,
)
from kolm_build.store.index import Index, Row
from kolm_build.store.layout import EXECUTABLE_MODE, Form, Kind, Layout
from kolm_build.store.session import remove_tree
from kolm_build.store.write import create, write_all

if TYPE_CHECKING:
    from kolm_build.store.join import Join

_ADVICE = "`kolm store fsck --repair` finds what is damaged; the next build makes it again."
_PIECE_BYTES = 512 << 10


@dataclass(slots=True)
class _Piece:
    """A run of a blob's bytes in one file."""

    b3: Digest
    path: str
    offset: int
    size_bytes: int
    form: Form

    @property
    def is_whole_file(self) -> bool:
        """Whether the file holds nothing else."""
        return self.form is Form.WHOLE


class Reader:
    """Reads and checks the objects of one store.

    Args:
        layout: The store's paths.
        index: Its index: what has no row is not there.
    """

    def __init__(self, layout: Layout, index: Index) -> None:
        self._layout = layout
        self._index = index

    def record(self, kind: Kind, digest: Digest, *, context: RecordKind | None) -> bytes:
        """The bytes of a small object, checked.

        Args:
            kind: Which folder it is in.
            digest: Its name.
            context: How the name is made; None for a plain BLAKE3.

        Raises:
            MissingObjectError: It is not in the store.
            CorruptObjectError: Its bytes changed.
        """
        if not self._index.has(kind, digest):
            raise _missing(digest)
        path = self._layout.path(kind, digest)
        data = _read(path, digest)
        check(digest, record_digest(data, context), path)
        return data

    def tree(self, digest: Digest) -> Tree:
        """A folder's record."""
        return Tree.decode(self.record(Kind.TREE, digest, context=RecordKind.TREE))

    def blob(self, b3: Digest) -> bytes:
        """All bytes of a blob."""
        data = b"".join(map(self._bytes, self._pieces(b3)))
        self._check_blob(b3, Digest.of_blob(data))
        return data

    def stream(self, b3: Digest) -> Iterator[bytes]:
        """The bytes of a blob, piece by piece; the last one only once all are known to be right."""
        hasher, held = blake3(), b""
        for piece in self._pieces(b3):
            with self._opened(piece) as source:
                for data in _read_range(source, piece):
                    hasher.update(data)
                    if held:
                        yield held
                    held = bytes(data)
        self._check_blob(b3, Digest(hasher.digest()))
        if held:
            yield held

    def leaves(self, b3: Digest) -> tuple[tuple[Digest, int], ...]:
        """The blobs that, in order, are a blob's bytes and are kept as they are; with their sizes.

        Raises:
            MissingObjectError: It is not in the store.
        """
        return tuple((piece.b3, piece.size_bytes) for piece in self._pieces(b3))

    def blobs(self, b3s: Sequence[Digest]) -> Iterator[tuple[Digest, bytes]]:
        """All bytes of many small blobs; each pack that holds some of them is opened once."""
        rows = self._index.rows_of(Kind.BLOB, b3s)
        with ExitStack() as opened:
            files: dict[Digest, int] = {}
            for b3 in b3s:
                data = _packed(rows.get(b3), files, self._layout, opened)
                # What was moved or damaged meanwhile is looked for, and refused, in the usual way.
                is_right = data is not None and Digest.of_blob(data) == b3
                yield b3, data if data is not None and is_right else self.blob(b3)

    def hashed(self, b3: Digest) -> Blob:
        """Both digests of the bytes that a blob really has, nothing taken on trust."""
        first, second, size = blake3(), sha256(), 0
        for piece in self._pieces(b3):
            with self._opened(piece) as source:
                for data in _read_range(source, piece):
                    first.update(data)
                    second.update(data)
                    size += len(data)
        return Blob(b3=Digest(first.digest()), sha256=Sha256(second.digest()), size_bytes=size)

    def parts(self, b3: Digest) -> Join:
        """The record of a blob that is stored in parts."""
        path = self._layout.path(Kind.BLOB, b3, Form.JOINED)
        return read_join(_read(path, b3), b3, path)

    def materialise(self, digest: Digest, dest: str) -> None:
        """Make the folder `dest`, with the tree's files in it, read-only.

        Raises:
            StoreError: `dest` is there already.
            CorruptObjectError: An object's bytes changed; nothing is left at `dest`.
        """
        try:
            os.mkdir(dest)
        except FileExistsError:
            raise StoreError("the place to restore to is taken", file=dest) from None
        try:
            self._fill(digest, dest, 0)
        except BaseException:
            remove_tree(dest)
            raise

    def _fill(self, digest: Digest, dest: str, depth: int) -> None:
        for name, node in self.tree(digest).entries:
            path = f"{dest}/{name}"
            if isinstance(node, File):
                self.restore_file(node, path)
            elif isinstance(node, Folder):
                os.mkdir(path)
                self._fill(node.tree, path, depth + 1)
            else:
                _restore_link(node, path, depth)

    def restore_file(self, node: File, path: str) -> None:
        """Make the file `path`, read-only; the errors of `restore_blob`."""
        self.restore_blob(node.b3, path, executable=node.executable)

    def restore_blob(self, b3: Digest, path: str, *, executable: bool) -> None:
        """Make the file `path` of a blob, read-only.

        Raises:
            CorruptObjectError: Its bytes changed; what was written is left to the caller to remove.
        """
        target = create(path)
        try:
            self._check_blob(b3, self._copy(b3, target))
            if executable:
                os.fchmod(target, EXECUTABLE_MODE)
        finally:
            os.close(target)

    def _copy(self, b3: Digest, target: int) -> Digest:
        """Copy a blob's bytes to an open file; the digest of what was copied."""
        from kolm_build.store.spool import is_cloned

        hasher = blake3()
        pieces = list(self._pieces(b3))
        for piece in pieces:
            with self._opened(piece) as source:
                whole = len(pieces) == 1 and piece.is_whole_file
                cloned = whole and is_cloned(source, target)
                for data in _read_range(target if cloned else source, piece):
                    hasher.update(data)
                    if not cloned:
                        write_all(target, data)
        return Digest(hasher.digest())

    def _pieces(self, b3: Digest) -> Iterator[_Piece]:
        """Where a blob's bytes lie, in order."""
        row = self._index.row(Kind.BLOB, b3)
        if row is None:
            raise _missing(b3)
        if row.form is Form.JOINED:
            for part, _ in self.parts(b3).parts:
                yield from self._pieces(part)
        else:
            yield _Piece(b3, row.path(self._layout), row.offset, row.size_bytes, row.form)

    @contextmanager
    def _opened(self, piece: _Piece) -> Iterator[int]:
        source = self._open_piece(piece)
        try:
            yield source
        finally:
            os.close(source)

    def _open_piece(self, piece: _Piece) -> int:
        """Open a piece's file, wherever the collector has moved it since."""
        try:
            return _open(piece.path, piece.b3)
        except MissingObjectError:
            (now,) = self._pieces(piece.b3)
            if now.path == piece.path:
                raise
            piece.path, piece.offset = now.path, now.offset
            return _open(now.path, now.b3)

    def _bytes(self, piece: _Piece) -> bytes:
        with self._opened(piece) as source:
            return b"".join(bytes(data) for data in _read_range(source, piece))

    def _check_blob(self, b3: Digest, actual: Digest) -> None:
        """Refuse a blob's bytes if they are others; name the part where it has parts."""
        if actual == b3:
            return
        path = self._layout.path(Kind.BLOB, b3)
        for piece in self._pieces(b3):
            check(piece.b3, Digest.of_blob(self._bytes(piece)), piece.path)
        check(b3, actual, path)


def record_digest(data: bytes, context: RecordKind | None) -> Digest:
    """The name of a record's bytes."""
    return Digest.of_record(data, context) if context else Digest.of_blob(data)


def read_join(data: bytes, b3: Digest, path: str) -> Join:
    """The record of a joined blob.

    Raises:
        CorruptObjectError: It is damaged, or another blob's.
    """
    from kolm_build.store.join import Join

    try:
        join = Join.decode(data)
    except InvalidRecordError as error:
        raise CorruptObjectError(error.reason, file=path, advice=_ADVICE) from error
    check(b3, join.b3, path)
    return join


def check(expected: Digest, actual: Digest, path: str) -> None:
    """Refuse an object whose bytes are not those it is named after.

    Raises:
        CorruptObjectError: They differ.
    """
    if expected != actual:
        raise CorruptObjectError(
            "an object's bytes changed",
            file=path,
            expected=str(expected),
            actual=str(actual),
            advice=_ADVICE,
        )


def _packed(
    row: Row | None, files: dict[Digest, int], layout: Layout, opened: ExitStack
) -> bytes | None:
    """The bytes that a row says lie in a pack; None where they do not lie in one."""
    if row is None or row.pack is None:
        return None
    file = files.get(row.pack)
    if file is None:
        try:
            file = files[row.pack] = _open(row.path(layout), row.digest)
        except MissingObjectError:
            return None
        opened.callback(os.close, file)
    return os.pread(file, row.size_bytes, row.offset)


def _missing(digest: Digest) -> MissingObjectError:
    return MissingObjectError("not in the store", expected=str(digest))


def _open(path: str, digest: Digest) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise MissingObjectError(
            "an object's file is missing", file=path, expected=str(digest), advice=_ADVICE
        ) from None


def _read(path: str, digest: Digest) -> bytes:
    source = _open(path, digest)
    with os.fdopen(source, "rb", buffering=0) as file:
        return file.readall()


def _read_range(source: int, piece: _Piece) -> Iterator[memoryview]:
    """The bytes of a piece, in one buffer that is used again.

    A file of its own is read to its end, so that bytes too many are not overlooked.
    """
    buffer = memoryview(bytearray(min(piece.size_bytes + 1, _PIECE_BYTES)))
    if piece.is_whole_file:
        while count := os.readv(source, [buffer]):
            yield buffer[:count]
        return
    at, end = piece.offset, piece.offset + piece.size_bytes
    while at < end and (count := os.preadv(source, [buffer[: end - at]], at)):
        yield buffer[:count]
        at += count


def _restore_link(node: Link, path: str, depth: int) -> None:
    if node.target.split("/").count("..") > depth:
        raise InvalidRecordError("a link leads out of the tree", file=path, actual=node.target)
    os.symlink(node.target, path)
