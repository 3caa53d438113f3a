"""Large files: copied aside piece by piece, and hashed while they are copied.

Each piece is read once into memory; the same bytes are hashed and written, so a file that
changes meanwhile cannot give an object a wrong name. SHA-256, which takes longest, has a thread of
its own; so has the writing, which waits for the disk; reading and BLAKE3 together take less than
either. All of them release the interpreter. (Copying inside the kernel was slower: what it saves,
the hashes pay again in page faults.) A file system that shares extents is asked for that first.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from types import TracebackType
from typing import Protocol, Self

from blake3 import blake3

from kolm_build.core.digest import Blob, Digest, Sha256
from kolm_build.errors import InvalidRecordError
from kolm_build.store.beside import Beside, Task
from kolm_build.store.direct import NewFile, buffers

PIECE_BYTES = 1 << 20
"""Small enough that a piece is still in the processor's cache when it is hashed."""
_AHEAD = 16
"""How many pieces the reading thread may be ahead of those that hash and write."""
_FICLONE = 0x40049409
_NO_CLONE = {
    errno.EOPNOTSUPP,
    errno.ENOTTY,
    errno.EINVAL,
    errno.EXDEV,
    errno.ENOSYS,
    errno.EPERM,
    errno.ETXTBSY,
    errno.EBADF,
}


@dataclass(frozen=True, slots=True)
class Part:
    """One segment of a file, copied aside.

    Attributes:
        b3: The digest of its bytes.
        size_bytes: Their number.
        temp: Where they lie.
    """

    b3: Digest
    size_bytes: int
    temp: str


def spool(
    source: int, segments: Sequence[int], temp: Callable[[], str], *, clone: bool = True
) -> tuple[Blob, tuple[Part, ...]]:
    """Copy an open file aside in segments, and hash it.

    Args:
        source: The open file, where its first segment begins.
        segments: The sizes of its segments, none of them 0, together the whole file.
        temp: Gives a new path for each copy.
        clone: Whether a single segment is the whole file, so that extents may be shared.

    Returns:
        The file as a blob, and its segments. One segment has the file's own digest.

    Raises:
        InvalidRecordError: The file is shorter than its segments.
    """
    whole, sha = blake3(), sha256()
    is_single = len(segments) == 1
    parts = []
    with _Pieces(min(PIECE_BYTES, max(segments)), sha) as pieces:
        for size in segments:
            path = temp()
            part = blake3()
            hashers = (part,) if is_single else (part, whole)
            _copy_segment(source, size, path, pieces, hashers, clone=is_single and clone)
            parts.append(Part(Digest(part.digest()), size, path))
        pieces.wait()
    b3 = parts[0].b3 if is_single else Digest(whole.digest())
    blob = Blob(b3=b3, sha256=Sha256(sha.digest()), size_bytes=sum(segments))
    return blob, tuple(parts)


class _Hasher(Protocol):
    def update(self, data: memoryview, /) -> object: ...


class _Pieces:
    """Lends buffers to read into; hashes and writes what was read, in order, in two threads.

    Args:
        piece_bytes: The size of a buffer.
        sha: What hashes every piece.
    """

    def __init__(self, piece_bytes: int, sha: _Hasher) -> None:
        self._sha = sha
        self._hashing, self._writing = Beside(), Beside()
        self._free = deque(buffers(piece_bytes, _AHEAD))
        self._busy: deque[tuple[memoryview, tuple[Task[object], ...]]] = deque()

    def __enter__(self) -> Self:
        self._hashing.__enter__()
        self._writing.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hashing.__exit__(kind, error, trace)
        self._writing.__exit__(kind, error, trace)

    def buffer(self) -> memoryview:
        """A buffer, at a page's beginning, whose bytes nobody needs any more."""
        return self._free.popleft() if self._free else self._wait_for_one()

    def feed(self, buffer: memoryview, count: int, target: NewFile | None) -> None:
        """Hash the first `count` bytes of a buffer, write them to `target`, then have it back."""
        piece = buffer[:count]
        tasks = [self._hashing.do(lambda: self._sha.update(piece))]
        if target is not None:
            tasks.append(self._writing.do(lambda: target.write(piece)))
        self._busy.append((buffer, tuple(tasks)))

    def close(self, target: NewFile) -> None:
        """Close a file once all that it was fed is written."""
        self._writing.do(target.close)

    def wait(self) -> None:
        """Wait for all that was fed; what went wrong with it is raised here, or earlier."""
        while self._busy:
            self._free.append(self._wait_for_one())

    def _wait_for_one(self) -> memoryview:
        buffer, tasks = self._busy.popleft()
        for task in tasks:
            task.result()
        return buffer


def _copy_segment(
    source: int,
    size: int,
    path: str,
    pieces: _Pieces,
    hashers: Sequence[_Hasher],
    *,
    clone: bool,
) -> None:
    """Copy the next `size` bytes of `source` to the new file `path`, hashing them."""
    target = NewFile(path, size)
    try:
        is_copied = not (clone and is_cloned(source, target.fd))
        left = size
        while left:
            buffer = pieces.buffer()
            room = buffer[: min(left, len(buffer))]
            count = os.readv(source if is_copied else target.fd, [room])
            if count == 0:
                raise InvalidRecordError("the file became shorter while it was read")
            pieces.feed(buffer, count, target if is_copied else None)
            for hasher in hashers:
                hasher.update(buffer[:count])
            left -= count
    finally:
        pieces.close(target)


def is_cloned(source: int, target: int) -> bool:
    """Have `target` share the extents of `source`; False where the file system cannot."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno in _NO_CLONE:
            return False
        raise
    return True
