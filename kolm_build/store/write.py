"""Durable writes: new objects are written aside, then published together.

The order is fixed: bytes durable, names durable, then one commit that says so. A kill or a power
cut before the commit leaves litter, which the collector removes; nothing after it can be lost.
The renames happen inside the write transaction, and so does everything that takes a name away,
so a name without a row can only be litter, and is replaced.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from kolm_build.core.digest import Digest
from kolm_build.errors import StoreError
from kolm_build.store.index import Index, Row
from kolm_build.store.layout import OBJECT_MODE, Kind, Layout
from kolm_build.store.session import Session

FEW_FILES = 32
"""Up to so many files are flushed one by one; more of them by one flush of the file system."""


class VanishedError(StoreError):
    """An object that was relied on was collected before the commit: write it again."""


@dataclass(slots=True)
class _Pending:
    row: Row
    temp: str


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
        self._new: dict[tuple[Kind, Digest], _Pending] = {}
        self._relied: dict[Kind, set[Digest]] = {kind: set() for kind in Kind}
        self._temps: set[str] = set()
        self._then: list[Callable[[], None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for temp in self._temps:
            with suppress(OSError):
                os.unlink(temp)
        self._temps.clear()

    def has(self, kind: Kind, digest: Digest) -> bool:
        """Whether the object is here or in the store already; if so, this batch relies on it."""
        if (kind, digest) in self._new or digest in self._relied[kind]:
            return True
        if self._index.has(kind, digest):
            self._relied[kind].add(digest)
            return True
        return False

    def rely(self, kind: Kind, digests: Iterable[Digest]) -> set[Digest]:
        """Those of `digests` that are in the store; this batch relies on them."""
        found = self._index.present(kind, digests)
        self._relied[kind] |= found
        return found

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
        self._new[row.kind, row.digest] = _Pending(row, temp)

    def write(self, row: Row, data: bytes) -> None:
        """Write an object's bytes aside, unless it is here or in the store."""
        if not self.has(row.kind, row.digest):
            temp = self.temp()
            write_file(temp, data)
            self.adopt(row, temp)

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
        self._flush_data()
        with self._index.transaction():
            self._check_relied()
            fresh = self._fresh()
            for pending in fresh:
                os.rename(pending.temp, self._path(pending.row))
            self._flush_names(fresh)
            self._index.add(pending.row for pending in fresh)
            self._index.pin(self._session.name, pins)
            for write_rows in self._then:
                write_rows()
        self._temps.difference_update(pending.temp for pending in fresh)

    def _path(self, row: Row) -> str:
        return self._layout.path(row.kind, row.digest, joined=row.joined)

    def _check_relied(self) -> None:
        for kind, digests in self._relied.items():
            gone = digests - self._index.present(kind, digests)
            if gone:
                raise VanishedError("an object was collected meanwhile", actual=str(min(gone)))

    def _fresh(self) -> list[_Pending]:
        """What no other writer has published since it was written here."""
        known: set[tuple[Kind, Digest]] = set()
        for kind in Kind:
            mine = [digest for of, digest in self._new if of is kind]
            known.update((kind, digest) for digest in self._index.present(kind, mine))
        return [pending for key, pending in self._new.items() if key not in known]

    def _flush_data(self) -> None:
        if len(self._new) > FEW_FILES:
            flush_all(self._layout.root)
        else:
            for pending in self._new.values():
                flush(pending.temp)

    def _flush_names(self, fresh: list[_Pending]) -> None:
        folders = {os.path.dirname(self._path(pending.row)) for pending in fresh}
        if len(folders) > FEW_FILES:
            flush_all(self._layout.root)
        else:
            for folder in sorted(folders):
                flush(folder)


def write_file(path: str, data: bytes) -> None:
    """Write a new file of the objects' mode; it is not durable yet."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, OBJECT_MODE)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(file, left) :]
        set_mode(file)
    finally:
        os.close(file)


def set_mode(file: int) -> None:
    """Give an open file the objects' mode where the process's umask withheld it."""
    if os.fstat(file).st_mode & 0o777 != OBJECT_MODE:
        os.fchmod(file, OBJECT_MODE)


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
