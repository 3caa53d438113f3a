"""Foreign exceptions as kolm's own: what the operating system refused, and what nobody foresaw."""

from __future__ import annotations

import errno
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

from kolm_build import __version__
from kolm_build.errors import (
    KolmError,
    MachineError,
    NetworkError,
    NoSpaceError,
    PermissionDeniedError,
    ReadOnlyStoreError,
)

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DENIED = (errno.EACCES, errno.EPERM)
_MISSING = (errno.ENOENT, errno.ENOTDIR)
_NETWORK = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ECONNREFUSED, errno.ECONNRESET)
_TOO_MANY = (errno.EMFILE, errno.ENFILE)


def troubles_of(error: BaseException) -> tuple[KolmError, ...]:
    """`error` as errors a user can act on, none if it is a mistake of this program."""
    if isinstance(error, KolmError):
        return (error,)
    if isinstance(error, BaseExceptionGroup):
        parts = tuple(troubles_of(part) for part in error.exceptions)
        return tuple(one for part in parts for one in part) if all(parts) else ()
    if isinstance(error, MemoryError):
        return (MachineError("out of memory", advice="Free memory, or use --jobs 1."),)
    if isinstance(error, OSError):
        return _of_system(error)
    return ()


def _of_system(error: OSError) -> tuple[KolmError, ...]:
    file = str(error.filename) if error.filename is not None else None
    match error.errno:
        case number if number in _NO_SPACE:
            advice = "Make room (`kolm store gc`), or put the store elsewhere (`--store`)."
            return (NoSpaceError("no space left", file=file, advice=advice),)
        case number if number in _DENIED:
            advice = "Change its permissions, or run kolm as the user who owns it."
            return (PermissionDeniedError("permission denied", file=file, advice=advice),)
        case errno.EROFS:
            return (ReadOnlyStoreError("the file system is read-only", file=file),)
        case number if number in _NETWORK:
            return (NetworkError("the network could not be reached", file=file),)
        case number if number in _MISSING and file is not None:
            return (MachineError("no such file or folder", file=file),)
        case errno.EIO:
            return (MachineError("the disk could not be read or written", file=file),)
        case number if number in _TOO_MANY:
            return (MachineError("too many open files", advice="Raise `ulimit -n`."),)
        case errno.ENOMEM:
            return (MachineError("out of memory", advice="Free memory, or use --jobs 1."),)
        case _:
            return ()


def save_report(error: BaseException, argv: Sequence[str]) -> Path | None:
    """Write what an author needs to a private file; its path, or None where none can be written.

    The arguments stay out of it but for the command's name: a prompt may be a patient's.
    """
    command = argv[0] if argv else ""
    text = "".join(traceback.format_exception(error))
    header = f"kolm {__version__}, Python {sys.version}\ncommand: {command}\n\n"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="kolm-bug-", suffix=".txt", encoding="utf-8", delete=False
        ) as file:
            file.write(header + text)
        return Path(file.name)
    except OSError:
        return None
