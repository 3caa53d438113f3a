"""Writing the user's files: whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from kolm_build.errors import UsageError


def write_whole(path: Path, data: bytes) -> None:
    """Put `data` under `path`, durably; a reader sees the old file or the new one.

    A link stays a link: what it points to is replaced.
    """
    path = path.resolve() if path.is_symlink() else path
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_new(path: Path, data: bytes) -> None:
    """Put `data` under `path`, where nothing is yet.

    Raises:
        UsageError: Something is there.
    """
    try:
        with path.open("xb") as file:
            file.write(data)
    except FileExistsError as error:
        raise UsageError(
            "a file is there already",
            file=str(path),
            advice="Nothing was written; choose another folder, or remove the file.",
        ) from error


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    # Reading it without changing it needs the kernel's word.
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    return 0o022
