"""Large files: copied aside piece by piece, and hashed while they are copied.

Each piece is read once into memory; the same bytes are hashed and written, so a file that
changes meanwhile cannot give an object a wrong name. One thread copies and computes BLAKE3, one
SHA-256, which takes about as long; both release the interpreter. (Copying inside the kernel was
slower: what it saves, the hashes pay again in page faults.) A file system that shares extents is
asked for that first.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol

from blake3 import blake3

from kolm_build.core.digest import Blob, Digest, Sha256
from kolm_build.errors import InvalidRecordError
from kolm_build.store.beside import Beside, Task
from kolm_build.store.write import create, start_flush, write_all

PIECE_BYTES = 512 << 10
"""Small enough that a piece is still in the processor's cache when it is hashed and written."""
_AHEAD = 16
"""How many pieces the copying thread may be ahead of the hashing one."""
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
    beside = (sha,) if is_single else (sha, whole)
    parts = []
    with Beside() as other:
        hashing = _Hashing(other, beside, min(PIECE_BYTES, max(segments)))
        for size in segments:
            path = temp()
            part = whole if is_single else blake3()
            _copy_segment(source, size, path, hashing, part, clone=is_single and clone)
            parts.append(Part(Digest(part.digest()), size, path))
    blob = Blob(b3=Digest(whole.digest()), sha256=Sha256(sha.digest()), size_bytes=sum(segments))
    return blob, tuple(parts)


class _Hasher(Protocol):
    def update(self, data: memoryview, /) -> object: ...


class _Hashing:
    """Hashes pieces in order in a thread, and lends the buffers that they are read into."""

    def __init__(self, other: Beside, hashers: Sequence[_Hasher], piece_bytes: int) -> None:
        self._other = other
        self._hashers = hashers
        self._free = deque(memoryview(bytearray(piece_bytes)) for _ in range(_AHEAD))
        self._busy: deque[tuple[Task[None], memoryview]] = deque()

    def buffer(self) -> memoryview:
        """A buffer whose bytes nobody needs any more."""
        if self._free:
            return self._free.popleft()
        hashed, buffer = self._busy.popleft()
        hashed.result()
        return buffer

    def feed(self, buffer: memoryview, count: int) -> None:
        """Hash the first `count` bytes of a buffer, then have it back."""
        piece = buffer[:count]
        self._busy.append((self._other.do(lambda: self._update(piece)), buffer))

    def _update(self, piece: memoryview) -> None:
        for hasher in self._hashers:
            hasher.update(piece)


def _copy_segment(
    source: int, size: int, path: str, hashing: _Hashing, part: _Hasher, *, clone: bool
) -> None:
    """Copy the next `size` bytes of `source` to the new file `path`, hashing them."""
    target = create(path)
    try:
        cloned = clone and is_cloned(source, target)
        left = size
        while left:
            buffer = hashing.buffer()
            count = os.readv(target if cloned else source, [buffer[: min(left, len(buffer))]])
            if count == 0:
                raise InvalidRecordError("the file became shorter while it was read")
            hashing.feed(buffer, count)
            part.update(buffer[:count])
            if not cloned:
                write_all(target, buffer[:count])
                start_flush(target, size - left, count)
            left -= count
    finally:
        os.close(target)


def is_cloned(source: int, target: int) -> bool:
    """Have `target` share the extents of `source`; False where the file system cannot."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno in _NO_CLONE:
            return False
        raise
    return True
