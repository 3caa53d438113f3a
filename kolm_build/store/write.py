"""Durable writes: new objects are written aside, then published together.

The order is fixed: bytes durable, names durable, then one commit that says so. A kill or a power
cut before the commit leaves litter, which the collector removes; nothing after it can be lost.
The renames happen inside the write transaction, and so does everything that takes a name away,
so a name without a row can only be litter, and is replaced.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from kolm_build.core.digest import Digest
from kolm_build.errors import StoreError
from kolm_build.store import pack
from kolm_build.store.beside import Beside, Task
from kolm_build.store.index import Index, Row
from kolm_build.store.layout import OBJECT_MODE, Form, Kind, Layout
from kolm_build.store.session import Session

FEW_FILES = 32
"""Up to so many files are flushed one by one; more of them by one flush of the file system.

More small blobs than that become one file, a pack.
"""
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_SYNC_FILE_RANGE_WRITE = 2
_WORTH_STARTING_BYTES = 1 << 20
_MAX_WAITING = 4096
_MAX_WAITING_BYTES = 8 << 20


class VanishedError(StoreError):
    """An object that was relied on was collected before the commit: write it again."""


@dataclass(slots=True)
class _Pending:
    """A new object: its row, and where its bytes are until it is published."""

    row: Row
    temp: str
    data: bytes = b""


class Batch:
    """New objects on their way into a store. Leaving it without `publish` drops them all.

    Args:
        layout: The store's paths.
        index: Its index.
        session: Where to write aside, and who pins.
    """

    def __init__(self, layout: Layout, index: Index, session: Session) -> None:
        self._layout = layout
        self._index = index
        self._session = session
        self._new: dict[Kind, dict[bytes, _Pending]] = {kind: {} for kind in Kind}
        self._relied: dict[Kind, set[Digest]] = {kind: set() for kind in Kind}
        self._waiting: list[_Pending] = []
        self._waiting_bytes = 0
        self._temps: set[str] = set()
        self._beside: Beside | None = None
        self._packing: Task[None] | None = None
        self._then: list[Callable[[], None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._beside is not None:
            self._beside.__exit__(kind, error, trace)
        for temp in self._temps:
            with suppress(OSError):
                os.unlink(temp)
        self._temps.clear()

    def has(self, kind: Kind, digest: Digest) -> bool:
        """Whether the object is here or in the store already; if so, this batch relies on it."""
        return bool(self.present(kind, [digest]))

    def present(self, kind: Kind, digests: Iterable[Digest]) -> set[Digest]:
        """Those of `digests` that are here or in the store; this batch relies on them."""
        wanted = set(digests)
        new, relied = self._new[kind], self._relied[kind]
        here = {one for one in wanted if one.raw in new or one in relied}
        stored = self._index.present(kind, wanted - here)
        relied |= stored
        return here | stored

    def temp(self) -> str:
        """A path to write aside; removed with the batch unless it is adopted and published."""
        temp = self._session.temp()
        self._temps.add(temp)
        return temp

    def discard(self, temp: str) -> None:
        """Drop what was written aside."""
        os.unlink(temp)
        self._temps.discard(temp)

    def adopt(self, row: Row, temp: str) -> None:
        """Take `temp`, whose bytes were hashed, as the object that `row` describes."""
        self._new[row.kind][row.digest.raw] = _Pending(row, temp)

    def write(self, row: Row, data: bytes) -> None:
        """Write an object's bytes aside, unless it is here or in the store.

        They may wait in memory for others, since looking for many at once is cheaper.
        """
        new = self._new[row.kind]
        if row.digest.raw not in new:
            new[row.digest.raw] = pending = _Pending(row, "", data)
            self._waiting.append(pending)
            self._waiting_bytes += len(data)
            if len(self._waiting) >= _MAX_WAITING or self._waiting_bytes >= _MAX_WAITING_BYTES:
                self._write_waiting()

    def _write_waiting(self) -> None:
        """Write what waits: many small blobs as one pack, the others as files."""
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        fresh = self._not_stored(waiting)
        small = [pending for pending in fresh if _is_small(pending.row)]
        if len(small) > FEW_FILES:
            self._write_pack(small)
            fresh = [pending for pending in fresh if not _is_small(pending.row)]
        for pending in fresh:
            pending.temp = self.temp()
            write_file(pending.temp, pending.data)
            pending.data = b""

    def _not_stored(self, waiting: Sequence[_Pending]) -> list[_Pending]:
        """Those of `waiting` that the store does not hold; the batch relies on the others."""
        fresh: list[_Pending] = []
        for kind in {pending.row.kind for pending in waiting}:
            mine = [pending for pending in waiting if pending.row.kind is kind]
            stored = self._index.present(kind, [pending.row.digest for pending in mine])
            self._relied[kind] |= stored
            for digest in stored:
                del self._new[kind][digest.raw]
            fresh.extend(one for one in mine if not stored or one.row.digest not in stored)
        return fresh

    def _write_pack(self, small: Sequence[_Pending]) -> None:
        """Write a pack while the next files are read; one at a time, since it is in memory."""
        if self._beside is None:
            self._beside = Beside().__enter__()
        self._wait_for_pack()
        temp = self.temp()
        self._packing = self._beside.do(lambda: self._make_pack(small, temp))

    def _wait_for_pack(self) -> None:
        if self._packing is not None:
            packing, self._packing = self._packing, None
            packing.result()

    def _make_pack(self, small: Sequence[_Pending], temp: str) -> None:
        data = pack.encode([(pending.row.digest, pending.data) for pending in small])
        b3 = Digest.of_blob(data)
        write_file(temp, data)
        self.adopt(Row(Kind.PACK, b3, len(data)), temp)
        offset = 0
        for pending in small:
            digest, size = pending.row.digest, pending.row.size_bytes
            pending.row = Row(Kind.BLOB, digest, size, Form.PACKED, b3, offset)
            pending.data = b""
            offset += size

    def also(self, write_rows: Callable[[], None]) -> None:
        """Write further rows in the transaction that publishes."""
        self._then.append(write_rows)

    def publish(self, *, pins: Iterable[Digest] = ()) -> None:
        """Make everything durable and valid at once.

        Args:
            pins: Objects that stay as long as the session lives.

        Raises:
            VanishedError: Something relied on was collected meanwhile; nothing was published.
        """
        self._write_waiting()
        self._wait_for_pack()
        self._flush_data()
        with self._index.transaction():
            self._check_relied()
            fresh = self._fresh()
            files = {one.temp: one.row.path(self._layout) for one in fresh if one.temp}
            for temp, path in files.items():
                os.rename(temp, path)
            self._flush_names(files.values())
            self._index.add(pending.row for pending in fresh)
            self._index.pin(self._session.name, pins)
            for write_rows in self._then:
                write_rows()
        self._temps.difference_update(files)

    def _check_relied(self) -> None:
        for kind, digests in self._relied.items():
            gone = digests - self._index.present(kind, digests)
            if gone:
                raise VanishedError("an object was collected meanwhile", actual=str(min(gone)))

    def _fresh(self) -> list[_Pending]:
        """What no other writer has published since it was written here.

        Blobs in packs have no file to give a name to, and of two rows for one the first stays.
        """
        fresh: list[_Pending] = []
        for kind, new in self._new.items():
            files = [one.row.digest for one in new.values() if one.temp]
            known = self._index.present(kind, files)
            fresh.extend(one for one in new.values() if not known or one.row.digest not in known)
        return fresh

    def _flush_data(self) -> None:
        temps = [one.temp for new in self._new.values() for one in new.values() if one.temp]
        if len(temps) > FEW_FILES:
            flush_all(self._layout.root)
        else:
            for temp in temps:
                flush(temp)

    def _flush_names(self, paths: Iterable[str]) -> None:
        folders = set(map(os.path.dirname, paths))
        if len(folders) > FEW_FILES:
            flush_all(self._layout.root)
        else:
            for folder in sorted(folders):
                flush(folder)


def _is_small(row: Row) -> bool:
    return row.kind is Kind.BLOB and row.size_bytes <= pack.MAX_BLOB_BYTES


def create(path: str) -> int:
    """Open a new file, to be written, with the objects' mode whatever the umask is."""
    file = os.open(path, _CREATE, OBJECT_MODE)
    if os.fstat(file).st_mode & 0o777 != OBJECT_MODE:
        os.fchmod(file, OBJECT_MODE)
    return file


def write_all(file: int, data: bytes | memoryview) -> None:
    """Write all of `data` to an open file."""
    written = os.write(file, data)
    while written < len(data):
        written += os.write(file, memoryview(data)[written:])


def write_file(path: str, data: bytes) -> None:
    """Write a new file of the objects' mode; it is not durable yet, but on its way."""
    file = create(path)
    try:
        write_all(file, data)
        if len(data) >= _WORTH_STARTING_BYTES:
            start_flush(file, 0, len(data))
    finally:
        os.close(file)


def write_named(path: str, data: bytes, temp: str) -> None:
    """Put `data` under `path`, durably, replacing what is there."""
    write_file(temp, data)
    try:
        flush(temp)
        os.rename(temp, path)
    except OSError:
        os.unlink(temp)
        raise
    flush(os.path.dirname(path))


def flush(path: str) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def start_flush(file: int, offset: int, count: int) -> None:
    """Have the kernel begin to write a range to the disk, and do not wait.

    Only a hint: the flush at the end waits for all of it, and reports what went wrong.
    """
    from ctypes import CDLL, c_int64

    CDLL(None).sync_file_range(file, c_int64(offset), c_int64(count), _SYNC_FILE_RANGE_WRITE)


def flush_all(root: str) -> None:
    """Wait until everything written to the file system of `root` is on the disk."""
    from ctypes import CDLL, get_errno

    file = os.open(root, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if CDLL(None, use_errno=True).syncfs(file) != 0:
            code = get_errno()
            raise OSError(code, os.strerror(code), root)
    finally:
        os.close(file)
