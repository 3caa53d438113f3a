"""What a store takes from elsewhere: objects that were fetched, proved before they are visible.

Blobs are published and pinned as they come, so that an interrupted copy goes on where it stopped;
joined blobs and trees follow when all that they name is here.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from blake3 import blake3

from kolm_build.core.digest import Digest
from kolm_build.errors import CorruptObjectError
from kolm_build.store.door import door
from kolm_build.store.index import Index, Row
from kolm_build.store.ingest import keep_tree
from kolm_build.store.inventory import Inventory, Parts
from kolm_build.store.join import Join
from kolm_build.store.layout import Form, Kind, Layout
from kolm_build.store.restore import Reader
from kolm_build.store.session import Session
from kolm_build.store.write import Batch, write_file

LARGE_BYTES = 8 << 20
"""Larger blobs are taken up where an earlier process left them."""


@dataclass(frozen=True, slots=True)
class Aside:
    """A file below `tmp/` that a blob is written to.

    Attributes:
        path: The file; it may be there already, with the blob's first bytes.
        lock: The kernel's lock of its folder, where it has one of its own.
    """

    path: str
    lock: int | None = None

    def release(self) -> None:
        """Let go of it; what is worth going on with stays."""
        if self.lock is None:
            with suppress(FileNotFoundError):
                os.unlink(self.path)
            return
        folder = os.path.dirname(self.path)
        if not os.path.exists(self.path):
            with suppress(OSError):
                os.unlink(f"{folder}/lock")
                os.rmdir(folder)
        os.close(self.lock)


@dataclass(frozen=True, slots=True)
class Fetched:
    """A blob whose bytes were hashed.

    Attributes:
        b3: Its digest.
        size_bytes: Its size.
        data: Its bytes, where they are in memory.
        aside: The file that holds them else.
    """

    b3: Digest
    size_bytes: int
    data: bytes = b""
    aside: Aside | None = None


class Taker:
    """Brings objects into one store. One thread at a time, but for `aside` and `temp`.

    Args:
        layout: The store's paths.
        index: Its index.
        reader: Reads its objects.
        session: Whose pins keep what was taken.
    """

    def __init__(self, layout: Layout, index: Index, reader: Reader, session: Session) -> None:
        self._layout = layout
        self._index = index
        self._reader = reader
        self._session = session

    def missing(self, b3s: Iterable[Digest]) -> set[Digest]:
        """Those blobs that are not here; the others are pinned."""
        wanted = set(b3s)
        with door(self._layout.root), self._index.transaction():
            here = self._index.present(Kind.BLOB, wanted)
            self._index.pin(self._session.name, here)
        return wanted - here

    def aside(self, b3: Digest, size_bytes: int) -> Aside:
        """Where to write a blob: of a large one, the file that an earlier process may have begun.

        The kernel locks that file for this process; it stays if this ends before `keep`.
        """
        with door(self._layout.root):
            folder = f"{self._layout.folder('tmp')}/fetch-{b3.hex}"
            lock = _locked(folder) if size_bytes > LARGE_BYTES else None
            if lock is None:
                return Aside(self._session.temp())
            return Aside(f"{folder}/bytes", lock)

    def keep(self, fetched: Sequence[Fetched]) -> None:
        """Make blobs durable and visible."""
        if not fetched:
            return
        with door(self._layout.root), Batch(self._layout, self._index, self._session) as batch:
            for one in fetched:
                if one.aside is None:
                    batch.write(Row(Kind.BLOB, one.b3, one.size_bytes), one.data)
                elif batch.has(Kind.BLOB, one.b3):
                    os.unlink(one.aside.path)
                else:
                    batch.adopt(Row(Kind.BLOB, one.b3, one.size_bytes), one.aside.path)
            batch.publish(pins=[one.b3 for one in fetched])
        for one in fetched:
            if one.aside is not None:
                one.aside.release()

    def finish(self, inventory: Inventory) -> None:
        """Make a tree visible, all of whose blobs are here.

        Raises:
            CorruptObjectError: A joined blob is not what its parts give.
        """
        with door(self._layout.root), Batch(self._layout, self._index, self._session) as batch:
            for b3, parts in inventory.joins.items():
                if not batch.has(Kind.BLOB, b3):
                    self._join(batch, b3, parts)
            named = {*inventory.leaves(), *inventory.blobs()}
            missing = named - batch.present(Kind.BLOB, named)
            if missing:
                raise CorruptObjectError("a blob is missing", expected=str(min(missing)))
            for tree in inventory.bottom_up():
                keep_tree(batch, tree)
            batch.publish(pins=[inventory.tree])

    def _join(self, batch: Batch, b3: Digest, parts: Parts) -> None:
        hasher = blake3()
        for part, _ in parts:
            for piece in self._reader.stream(part):
                hasher.update(piece)
        actual = Digest(hasher.digest())
        if actual != b3:
            raise CorruptObjectError(
                "parts that do not give the blob", expected=str(b3), actual=str(actual)
            )
        join = Join(b3=b3, parts=parts)
        temp = batch.temp()
        write_file(temp, join.encode())
        batch.adopt(Row(Kind.BLOB, b3, join.size_bytes, Form.JOINED), temp)


def _locked(folder: str) -> int | None:
    """The lock of a folder for one blob, or None where another process has it."""
    with suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    try:
        lock = os.open(f"{folder}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:  # the collector, or the one who had it, has just taken it away
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    if os.fstat(lock).st_nlink == 0:  # it was taken away before it was locked
        os.close(lock)
        return None
    return lock
