"""Bytes from a place, patiently: asked for again, from where they stopped, within limits."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from blake3 import blake3

from kolm_build.core.digest import Digest
from kolm_build.store.beside import Beside, Task
from kolm_build.store.remote.place import (
    PIECE_BYTES,
    FaultError,
    Limits,
    Place,
    Stream,
    refuse_size,
)
from kolm_build.store.write import create, start_flush, write_all

_AHEAD = 8
"""How many pieces the thread that reads and writes may be ahead of the one that hashes."""
_SMALL_PIECE_BYTES = 64 << 10
_PROGRESS_BYTES = 1 << 20
"""Who gave so much before failing is asked as if for the first time."""

T = TypeVar("T")


class Sink(Protocol):
    """Where an object's bytes go."""

    @property
    def count(self) -> int:
        """How many it has taken."""

    def room(self) -> memoryview:
        """A buffer for the next bytes."""

    def take(self, room: memoryview, count: int) -> None:
        """Take the first `count` bytes of what `room` gave."""

    def restart(self) -> None:
        """Forget what was taken."""


class MemorySink:
    """Takes a small object into memory."""

    def __init__(self) -> None:
        self.data = bytearray()
        self._buffer = memoryview(bytearray(_SMALL_PIECE_BYTES))

    @property
    def count(self) -> int:
        """See `Sink`."""
        return len(self.data)

    def room(self) -> memoryview:
        """See `Sink`."""
        return self._buffer

    def take(self, room: memoryview, count: int) -> None:
        """See `Sink`."""
        self.data += room[:count]

    def restart(self) -> None:
        """See `Sink`."""
        self.data.clear()


class FileSink:
    """Takes an object into a file of the objects' mode, and hashes it in a thread of its own.

    Args:
        path: The file; what an earlier process left there is hashed, and gone on with.
    """

    def __init__(self, path: str) -> None:
        self._hasher = blake3()
        self._free = deque(memoryview(bytearray(PIECE_BYTES)) for _ in range(_AHEAD))
        self._busy: deque[tuple[Task[None], memoryview]] = deque()
        self.count = 0
        self._file = create(path) if not os.path.exists(path) else _reopened(path)
        self._beside = Beside().__enter__()
        self._take_up()

    @property
    def b3(self) -> Digest:
        """The digest of what was taken."""
        self._settle()
        return Digest(self._hasher.digest())

    def room(self) -> memoryview:
        """See `Sink`."""
        if self._free:
            return self._free.popleft()
        if not self._busy:  # the last ones were given out and nothing came
            return memoryview(bytearray(PIECE_BYTES))
        task, buffer = self._busy.popleft()
        task.result()
        return buffer

    def take(self, room: memoryview, count: int) -> None:
        """See `Sink`."""
        write_all(self._file, room[:count])
        self._hash(room, count)

    def restart(self) -> None:
        """See `Sink`."""
        self._settle()
        os.ftruncate(self._file, 0)
        os.lseek(self._file, 0, os.SEEK_SET)
        self._hasher = blake3()
        self.count = 0

    def close(self) -> None:
        """Close the file."""
        self._beside.__exit__(None, None, None)
        os.close(self._file)

    def _take_up(self) -> None:
        while count := os.readv(self._file, [room := self.room()]):
            self._hash(room, count)
        self._free.append(room)

    def _hash(self, room: memoryview, count: int) -> None:
        offset, self.count = self.count, self.count + count

        def work() -> None:
            self._hasher.update(room[:count])
            start_flush(self._file, offset, count)

        self._busy.append((self._beside.do(work), room))

    def _settle(self) -> None:
        """Wait until all that was taken is hashed."""
        while self._busy:
            task, buffer = self._busy.popleft()
            task.result()
            self._free.append(buffer)


def _reopened(path: str) -> int:
    os.chmod(path, 0o600)
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    os.fchmod(file, 0o444)
    return file


def patiently(ask: Callable[[], T], limits: Limits) -> T:
    """What `ask` gives, asked again after a fault that may pass."""
    return _Attempts(limits).until(ask)


class _Attempts:
    """Counts how often something was asked for in vain."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.failed = 0

    def until(self, ask: Callable[[], T]) -> T:
        while True:
            try:
                return ask()
            except FaultError:
                self.failed += 1
                if self.failed >= self._limits.attempts:
                    raise
            self._limits.sleep(self._limits.pause_s * 2 ** (self.failed - 1))


def pour(
    place: Place, path: str, sink: Sink, *, size: int | None, most: int, limits: Limits
) -> bool:
    """Move an object into `sink`, going on where an earlier attempt stopped.

    Args:
        place: Where it is.
        path: Its name there.
        sink: Where it goes.
        size: Its size, where that is known.
        most: How large it may be.
        limits: How patient to be.

    Returns:
        Whether it is there.

    Raises:
        NetworkError: The place failed, however often it was asked.
        CorruptObjectError: The object has another size.
    """
    attempts = _Attempts(limits)
    pouring = _Pouring(
        url=f"{place.url}/{path}",
        sink=sink,
        size=size,
        most=most if size is None else size,
        limits=limits,
    )

    def ask() -> bool:
        before = sink.count
        try:
            return pouring.is_full or pouring.once(place, path)
        except FaultError:
            if sink.count - before >= _PROGRESS_BYTES:
                attempts.failed = 0
            raise

    return attempts.until(ask)


def read(
    place: Place, path: str, *, most: int, limits: Limits, size: int | None = None
) -> bytes | None:
    """A small object, or None where there is none; the errors of `pour`."""
    sink = MemorySink()
    there = pour(place, path, sink, size=size, most=most, limits=limits)
    return bytes(sink.data) if there else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pouring:
    """One object on its way.

    Attributes:
        url: Its address, for messages.
        sink: Where it goes.
        size: Its size, where that is known.
        most: How large it may be.
        limits: How patient to be.
    """

    url: str
    sink: Sink
    size: int | None
    most: int
    limits: Limits

    @property
    def is_full(self) -> bool:
        """Whether all of it has come; of an empty object one must ask whether it is there."""
        return self.size is not None and self.sink.count == self.size > 0

    def once(self, place: Place, path: str) -> bool:
        """Ask for what is missing; whether the object is there."""
        stream = place.open(path, start=self.sink.count)
        if stream is None:
            return False
        try:
            self._check_extent(stream)
            self._pump(stream)
            self._check_end(stream.size_bytes)
        finally:
            stream.close()
        return True

    def _check_extent(self, stream: Stream) -> None:
        total = stream.size_bytes
        if total is not None and (total > self.most or self.size not in (None, total)):
            raise refuse_size(self.url, self.most, total)
        if stream.start != self.sink.count:
            self.sink.restart()
            if stream.start:
                raise FaultError("another range than the one asked for", file=self.url)

    def _pump(self, stream: Stream) -> None:
        begin, first = self.limits.clock(), self.sink.count
        while count := stream.readinto(room := self.sink.room()):
            if self.sink.count + count > self.most:
                raise refuse_size(self.url, self.most, self.sink.count + count)
            self.sink.take(room, count)
            self._check_speed(self.sink.count - first, self.limits.clock() - begin)

    def _check_end(self, total: int | None) -> None:
        expected = self.size if self.size is not None else total
        if expected is not None and self.sink.count < expected:
            raise FaultError(
                "an object ended early",
                file=self.url,
                expected=f"{expected} bytes",
                actual=f"{self.sink.count} bytes",
            )

    def _check_speed(self, count: int, seconds: float) -> None:
        least = self.limits.least_bytes_per_s
        if seconds > self.limits.grace_s and count < least * seconds:
            raise FaultError(
                "too slow",
                file=self.url,
                expected=f"{least} bytes a second",
                actual=f"{count} bytes in {seconds:.0f} s",
            )
