"""What a substituter is kept in: files under names, somewhere, and how patient to be with it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import monotonic, sleep
from typing import Protocol

from kolm_build.errors import CorruptObjectError, NetworkError

PIECE_BYTES = 512 << 10
"""Read, hashed and written at once; still in the processor's cache when it is."""


class FaultError(NetworkError):
    """A place failed in a way that may pass: asked again, it may answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How patient to be.

    Attributes:
        timeout_s: How long one answer, or the next bytes of one, may take.
        attempts: How often something is asked for.
        pause_s: How long to wait before the second attempt; each later wait is twice as long.
        least_bytes_per_s: What is slower than this is given up,
        grace_s: once it has been for so long.
        clock: Seconds, monotonic.
        sleep: Waits so many seconds.
    """

    timeout_s: float = 15.0
    attempts: int = 3
    pause_s: float = 0.25
    least_bytes_per_s: int = 1024
    grace_s: float = 30.0
    clock: Callable[[], float] = monotonic
    sleep: Callable[[float], None] = sleep


class Stream(Protocol):
    """An object's bytes on their way."""

    @property
    def start(self) -> int:
        """Which byte of the object comes first."""

    @property
    def size_bytes(self) -> int | None:
        """The size of the whole object, as far as the place says."""

    def readinto(self, buffer: memoryview) -> int:
        """Fill the start of `buffer`; how many bytes there were, 0 at the end.

        Raises:
            FaultError: The place failed.
        """

    def close(self) -> None:
        """Ask for no more."""


class Place(Protocol):
    """Files under names. Threads may share it."""

    @property
    def url(self) -> str:
        """Its address, without what is secret in it."""

    @property
    def is_network(self) -> bool:
        """Whether asking it touches the network."""

    def open(self, path: str, *, start: int = 0) -> Stream | None:
        """The bytes of a file from `start` on, or from its begin; None where there is none.

        Raises:
            NetworkError: The place cannot be read; `FaultError` where it may pass.
        """

    def has(self, path: str) -> bool:
        """Whether there is a file; the errors of `open`."""

    def write(self, path: str, source: Source) -> None:
        """Put a file there, whole or not at all; the errors of `open`.

        Raises:
            UsageError: The place is one to read from.
        """

    def close(self) -> None:
        """Let go of connections."""


class Source(Protocol):
    """Bytes to be written; they can be read more than once."""

    @property
    def size_bytes(self) -> int:
        """How many there are."""

    def pieces(self) -> Iterator[bytes | memoryview]:
        """The bytes, in order; a piece is good until the next is asked for."""


@dataclass(frozen=True, slots=True)
class Bytes:
    """A source in memory.

    Attributes:
        data: The bytes.
    """

    data: bytes

    @property
    def size_bytes(self) -> int:
        """How many there are."""
        return len(self.data)

    def pieces(self) -> Iterator[bytes]:
        """All of them."""
        yield self.data


class FileStream:
    """A stream of an open file, which it closes.

    Args:
        file: The descriptor.
        start: Where to begin.
    """

    def __init__(self, file: int, start: int) -> None:
        self._file = file
        self.size_bytes: int | None = os.fstat(file).st_size
        self.start = os.lseek(file, start, os.SEEK_SET)

    def readinto(self, buffer: memoryview) -> int:
        """See `Stream`."""
        try:
            return os.readv(self._file, [buffer])
        except OSError as error:
            raise FaultError("a file cannot be read", actual=error.strerror) from error

    def close(self) -> None:
        """See `Stream`."""
        os.close(self._file)


def refuse_size(url: str, expected: int, actual: int) -> CorruptObjectError:
    """The error of an object that is announced, or goes on, beyond its size."""
    return CorruptObjectError(
        "an object of another size",
        file=url,
        expected=f"{expected} bytes",
        actual=f"{actual} bytes or more",
    )
