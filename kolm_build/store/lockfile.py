"""One builder for one derivation: kernel locks, whose holders say who they are.

The kernel frees a lock when its process ends, however that happens, so there is nothing to clean
up and no stale lock to break.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_HOLDER_BYTES = 4096


@contextmanager
def held(path: str, *, holder: str, on_wait: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock file `path`; wait for whoever has it.

    Args:
        path: The lock's file, made where it is missing.
        holder: Who holds it, for those that wait.
        on_wait: Told once who holds it, if it is not free.
    """
    file = _acquire(path, on_wait)
    try:
        os.ftruncate(file, 0)
        os.pwrite(file, holder.encode()[:_HOLDER_BYTES], 0)
        yield
    finally:
        os.close(file)


def _acquire(path: str, on_wait: Callable[[str], None]) -> int:
    """The locked file that is at `path` now: a collector may have removed the one waited for."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            _lock(file, on_wait)
            if _is_at(file, path):
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _lock(file: int, on_wait: Callable[[str], None]) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        on_wait(os.pread(file, _HOLDER_BYTES, 0).decode(errors="replace") or "another process")
        fcntl.flock(file, fcntl.LOCK_EX)


def _is_at(file: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def remove_free(path: str) -> None:
    """Remove a lock's file if nobody holds it."""
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(file, path):
            os.unlink(path)
    except BlockingIOError:
        return
    finally:
        os.close(file)
