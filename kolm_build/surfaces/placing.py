"""From the store to a place of the user's: whole or not at all, and theirs to change."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kolm_build.errors import UsageError

_PLAIN_MODE, _EXECUTABLE_MODE = 0o644, 0o755


@contextmanager
def room_beside(dest: Path) -> Iterator[Path]:
    """A private folder on the disk of `dest`; it and what is left in it are removed."""
    with tempfile.TemporaryDirectory(prefix=f".{dest.name}.", dir=dest.parent) as folder:
        yield Path(folder)


def make_own(path: Path) -> None:
    """Give a file, or all of a folder, the plain modes 0644 and 0755, and make it durable.

    What may be executed still may, whatever the umask is; links stay as they are.
    """
    if not path.is_dir():
        _own(path)
        return
    for folder, _, files in os.walk(path, topdown=False):
        for name in files:
            _own(Path(folder, name))
        _own(Path(folder))


def _own(path: Path) -> None:
    if path.is_symlink():
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        executable = os.fstat(descriptor).st_mode & 0o100
        os.fchmod(descriptor, _EXECUTABLE_MODE if executable else _PLAIN_MODE)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_free(dest: Path) -> None:
    """Refuse a place where something is, be it a link to nothing.

    Raises:
        UsageError: Something is there.
    """
    if os.path.lexists(dest):
        raise UsageError(
            "something is there already",
            file=str(dest),
            advice="Name another place, or replace it with --force.",
        )


def check_replaceable(dest: Path, kept: Sequence[Path]) -> None:
    """Refuse to replace a folder that one of the folders `kept` is, or lies in.

    Raises:
        UsageError: One does.
    """
    for folder in kept:
        if folder.resolve().is_relative_to(dest.resolve()):
            raise UsageError(
                "this folder is not replaced",
                file=str(dest),
                expected="a folder without the project, the store and the working folder in it",
                actual=f"{folder} is {'it' if folder.resolve() == dest.resolve() else 'inside'}",
            )


def put(made: Path, dest: Path, *, aside: Path) -> None:
    """Move the file or folder `made` to `dest`, in place of what is there.

    Args:
        made: What is put; on the disk of `dest`.
        dest: A file is replaced at once; a folder is set aside first, and put back where
            `made` cannot take its place.
        aside: Where to; nothing is there yet.
    """
    if os.path.lexists(dest) and (made.is_dir() or (dest.is_dir() and not dest.is_symlink())):
        dest.rename(aside)
        try:
            made.rename(dest)
        except BaseException:
            aside.rename(dest)
            raise
    else:
        made.replace(dest)
