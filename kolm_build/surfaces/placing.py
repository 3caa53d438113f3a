"""From the store to a place of the user's: whole or not at all, and theirs to change."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kolm_build.errors import UsageError
from kolm_build.surfaces.files import sync_folder

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


@contextmanager
def placed(dest: Path, check: Callable[[], None]) -> Iterator[Path]:
    """Where to make a file or folder that is moved to `dest`, if making it ended well.

    Args:
        dest: Where it goes, whole, synced, with plain modes.
        check: Refuses a place; asked before and, since that was long ago, after.
    """
    check()
    with room_beside(dest) as room:
        made = room / "made"
        yield made
        make_own(made)
        check()
        put(made, dest, aside=room / "before")
        sync_folder(dest.parent)


def check_place(dest: Path, *, force: bool, kept: Sequence[Path]) -> None:
    """Refuse a place that is not free, or with `force` may not be replaced.

    Args:
        dest: The place of a new file or folder.
        force: Whether what is there is replaced.
        kept: Folders that are not replaced, nor what holds them.

    Raises:
        UsageError: It is refused, or its folder is not there.
    """
    if not dest.parent.is_dir():
        raise UsageError("there is no such folder", file=str(dest.parent), advice="Make it first.")
    if not force:
        check_free(dest)
    elif dest.is_dir() and not dest.is_symlink():
        check_replaceable(dest, kept)


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
