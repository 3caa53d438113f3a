"""A process at work in a store: its private folder, and what it pins.

The folder holds a file that the process keeps locked with the kernel; whoever can lock it knows
that the process is gone, however it ended. Its pins lapse and its folder is swept.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from itertools import count

from kolm_build.store.index import Index
from kolm_build.store.layout import Layout

_LOCK = "lock"


class Session:
    """A process's own folder below `tmp/`, and its name for pins.

    Args:
        layout: The store's paths.
        index: Its index; the session is a row there.
    """

    def __init__(self, layout: Layout, index: Index) -> None:
        self.name = os.urandom(12).hex()
        self.folder = f"{layout.folder('tmp')}/{self.name}"
        self._index = index
        self._numbers = count()
        with index.transaction():
            os.mkdir(self.folder, 0o700)
            self._lock = os.open(f"{self.folder}/{_LOCK}", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            index.execute("insert into session values (?)", [(self.name,)])

    def temp(self) -> str:
        """A path that nothing else uses."""
        return f"{self.folder}/{next(self._numbers)}"

    def now_ns(self) -> int:
        """The file system's own clock, as the next file written here would be stamped."""
        os.utime(self._lock)
        return os.fstat(self._lock).st_mtime_ns

    def close(self) -> None:
        """Drop the pins and the folder."""
        with self._index.transaction():
            _forget(self._index, self.name)
        remove_tree(self.folder)
        os.close(self._lock)


def sweep(layout: Layout, index: Index) -> int:
    """Forget the sessions of processes that are gone; how many there were.

    Inside a transaction, since a session makes its folder inside one too.
    """
    names = os.listdir(layout.folder("tmp"))
    rows = {str(name) for (name,) in index.select("select name from session")}
    dead = [name for name in {*names, *rows} if _is_dead(f"{layout.folder('tmp')}/{name}/{_LOCK}")]
    for name in dead:
        _forget(index, name)
        remove_tree(f"{layout.folder('tmp')}/{name}")
    return len(dead)


def _forget(index: Index, name: str) -> None:
    index.execute("delete from pin where session = ?", [(name,)])
    index.execute("delete from session where name = ?", [(name,)])


def _is_dead(lock: str) -> bool:
    try:
        file = os.open(lock, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(file)
    return True


def remove_tree(path: str) -> None:
    """Remove a folder of ours and all below it, whatever modes a step left there."""
    with suppress(OSError):
        os.unlink(f"{path}/{_LOCK}")
        os.rmdir(path)  # a session's own folder is empty but for its lock, as a rule
        return
    import shutil

    def _open_up(_function: object, name: str, _info: object) -> None:
        with suppress(OSError):
            os.chmod(os.path.dirname(name), 0o700)
            os.unlink(name)

    shutil.rmtree(path, onerror=_open_up)
