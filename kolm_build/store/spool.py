"""Large files: copied aside by the kernel and hashed while they are copied.

What is hashed is the copy, so a file that changes meanwhile cannot give an object a wrong name.
The copy runs in this thread, BLAKE3 and SHA-256 in one thread each; all three release the
interpreter, so the slowest of them sets the pace.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol

from blake3 import blake3

from kolm_build.core.digest import Blob, Digest, Sha256
from kolm_build.errors import InvalidRecordError
from kolm_build.store.layout import OBJECT_MODE
from kolm_build.store.write import set_mode

CHUNK_BYTES = 8 << 20
_AHEAD = 64
_HAND_BYTES = 1 << 20
_NOT_HERE = {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM}


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
    source: int, segments: Sequence[int], temp: Callable[[], str]
) -> tuple[Blob, tuple[Part, ...]]:
    """Copy an open file aside in segments, and hash it.

    Args:
        source: The open file.
        segments: The sizes of its segments, none of them 0, together the whole file.
        temp: Gives a new path for each copy.

    Returns:
        The file as a blob, and its segments. One segment has the file's own digest.
    """
    from concurrent.futures import Future, ThreadPoolExecutor

    whole, sha = blake3(), sha256()
    made: list[tuple[Future[bytes], int, str]] = []
    queue: deque[Future[None]] = deque()
    offset = 0
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        for size in segments:
            path = temp()
            part = whole if len(segments) == 1 else blake3()
            hashers = (part,) if part is whole else (part, whole)
            for chunk in _copied(source, offset, size, path):
                queue.append(first.submit(_update, hashers, chunk))
                queue.append(second.submit(_update, (sha,), chunk))
                while len(queue) > _AHEAD:
                    queue.popleft().result()
            made.append((first.submit(part.digest), size, path))
            offset += size
        parts = tuple(Part(Digest(b3.result()), size, path) for b3, size, path in made)
    blob = Blob(b3=Digest(whole.digest()), sha256=Sha256(sha.digest()), size_bytes=offset)
    return blob, parts


class _Hasher(Protocol):
    def update(self, data: memoryview, /) -> object: ...


def _update(hashers: Iterable[_Hasher], chunk: memoryview) -> None:
    for hasher in hashers:
        hasher.update(chunk)


def _copied(source: int, offset: int, size: int, path: str) -> Iterator[memoryview]:
    """Copy one segment to the new file `path`; give each piece of the copy as it is made."""
    target = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, OBJECT_MODE)
    try:
        set_mode(target)
        os.ftruncate(target, size)
        view = memoryview(mmap.mmap(target, size, access=mmap.ACCESS_READ))
        for start in range(0, size, CHUNK_BYTES):
            count = min(CHUNK_BYTES, size - start)
            copy_range(source, offset + start, target, start, count)
            yield view[start : start + count]
    finally:
        os.close(target)


def copy_range(source: int, source_at: int, target: int, target_at: int, count: int) -> None:
    """Copy `count` bytes between open files: shared extents, or in the kernel, or by hand.

    Raises:
        InvalidRecordError: The source is shorter than it was.
    """
    done = 0
    while done < count:
        try:
            step = os.copy_file_range(
                source, target, count - done, source_at + done, target_at + done
            )
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise
            step = _copy_by_hand(source, source_at + done, target, target_at + done, count - done)
        if step == 0:
            step = _copy_by_hand(source, source_at + done, target, target_at + done, count - done)
        if step == 0:
            raise InvalidRecordError("the file became shorter while it was read")
        done += step


def _copy_by_hand(source: int, source_at: int, target: int, target_at: int, count: int) -> int:
    data = os.pread(source, min(count, _HAND_BYTES), source_at)
    left = memoryview(data)
    while left:
        written = os.pwrite(target, left, target_at)
        left, target_at = left[written:], target_at + written
    return len(data)
