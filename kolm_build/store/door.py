"""What the operating system and SQLite say, in the project's own errors."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from kolm_build.errors import (
    KolmError,
    MachineError,
    NoSpaceError,
    PermissionDeniedError,
    ReadOnlyStoreError,
    StoreFormatError,
)

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMLINK}
_DENIED = {errno.EACCES, errno.EPERM}
_SQLITE_PRIMARY = 0xFF
_BROKEN = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


@contextmanager
def door(root: str) -> Iterator[None]:
    """Translate what leaves: every error that a user may see is a KolmError.

    Args:
        root: The store's folder, named where the system names no file.
    """
    try:
        yield
    except OSError as error:
        raise _of_system(error, root) from error
    except sqlite3.Error as error:
        raise _of_index(error, root) from error


def _of_system(error: OSError, root: str) -> KolmError:
    file = str(error.filename or root)
    reason = error.strerror or str(error)
    if error.errno in _NO_SPACE:
        return NoSpaceError(
            "no space left, or a quota is used up",
            file=file,
            actual=reason,
            advice="`kolm store gc` frees what no root needs. Nothing half-written was kept.",
        )
    if error.errno == errno.EROFS:
        return ReadOnlyStoreError("the file system is read-only", file=file)
    if error.errno in _DENIED:
        return PermissionDeniedError(
            "permission denied", file=file, advice="Check the owner and the mode of this path."
        )
    return MachineError(reason, file=file)


def _of_index(error: sqlite3.Error, root: str) -> KolmError:
    file = f"{root}/db.sqlite"
    code = getattr(error, "sqlite_errorcode", 0) & _SQLITE_PRIMARY
    if code == sqlite3.SQLITE_FULL:
        return NoSpaceError("no space left for the index", file=file)
    if code == sqlite3.SQLITE_READONLY:
        return ReadOnlyStoreError("the index cannot be written", file=file)
    if code in {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM}:
        return PermissionDeniedError("the index cannot be opened", file=file, actual=str(error))
    if code in _BROKEN:
        return StoreFormatError(
            "the index is damaged",
            file=file,
            actual=str(error),
            advice="`kolm store fsck --rebuild-index` makes it again from the objects.",
        )
    return MachineError("the index could not be used", file=file, actual=str(error))
