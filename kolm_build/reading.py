"""Opening and reading a file that somebody handed over: an artifact, a pack.

It is below both the store and the verifier, which know nothing of each other.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from kolm_build.errors import KolmError, PermissionDeniedError, UsageError

PIECE_BYTES = 1 << 20


def open_regular(path: Path, refusal: type[KolmError]) -> int:
    """A regular file, open for reading; whoever takes it closes it.

    Args:
        path: Which.
        refusal: The error for what is no regular file.

    Raises:
        PermissionDeniedError: It may not be read.
        UsageError: It cannot be opened.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except PermissionError as error:
        raise PermissionDeniedError("may not be read", file=str(path)) from error
    except OSError as error:
        raise UsageError("cannot be opened", file=str(path), actual=error.strerror) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise refusal("not a regular file", file=str(path))
    return fd


def pread(fd: int, offset: int, length: int) -> bytes:
    """`length` bytes at `offset`; fewer where the file ends."""
    pieces = []
    while length > 0:
        piece = os.pread(fd, min(length, PIECE_BYTES), offset)
        if not piece:
            break
        pieces.append(piece)
        offset += len(piece)
        length -= len(piece)
    return b"".join(pieces)
