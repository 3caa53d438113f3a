"""A substituter in a folder: on a stick, on a share, or below a web server's root."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from kolm_build.errors import NetworkError, StoreFormatError
from kolm_build.store.remote.layout import FOLDERS, FORMAT_PATH
from kolm_build.store.remote.place import FaultError, FileStream, Source
from kolm_build.store.write import flush, write_all

_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK


class FolderPlace:
    """Files in a folder.

    Args:
        root: The folder; it need not be there.
    """

    is_network = False

    def __init__(self, root: str) -> None:
        self._root = os.path.abspath(root)

    @property
    def url(self) -> str:
        """Its address."""
        return f"file://{self._root}"

    def open(self, path: str, *, start: int = 0) -> FileStream | None:
        """See `Place`."""
        with _told(self.url):
            try:
                file = os.open(f"{self._root}/{path}", _READ)
            except (FileNotFoundError, NotADirectoryError):
                return None
            return FileStream(file, start)

    def has(self, path: str) -> bool:
        """See `Place`."""
        return os.path.isfile(f"{self._root}/{path}")

    def write(self, path: str, source: Source) -> None:
        """See `Place`."""
        if path == FORMAT_PATH:
            self._check_free()
        target = f"{self._root}/{path}"
        temp = f"{target}.{os.urandom(8).hex()}.new"
        with _told(self.url):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            try:
                _write(temp, source)
                os.rename(temp, target)
            except BaseException:
                with suppress(OSError):
                    os.unlink(temp)
                raise
            flush(os.path.dirname(target))

    def close(self) -> None:
        """See `Place`."""

    def _check_free(self) -> None:
        try:
            foreign = sorted(set(os.listdir(self._root)) - {*FOLDERS, FORMAT_PATH})
        except FileNotFoundError:
            return
        if foreign:
            raise StoreFormatError(
                "the folder holds other things and is no substituter",
                file=self._root,
                expected="an empty or a new folder",
                actual=", ".join(foreign[:5]),
            )


def _write(path: str, source: Source) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        for piece in source.pieces():
            write_all(file, piece)
        os.fsync(file)
    finally:
        os.close(file)


@contextmanager
def _told(url: str) -> Iterator[None]:
    """What the system says, as errors of a place."""
    try:
        yield
    except OSError as error:
        kind = FaultError if isinstance(error, InterruptedError | TimeoutError) else NetworkError
        raise kind("the folder cannot be used", file=url, actual=error.strerror) from error
