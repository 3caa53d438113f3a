"""A large new file, written in order past the page cache.

The processor then copies nothing, no memory of others is given up for a file that may never be
read again, and the flush at the end finds little to wait for. A file system that cannot do this,
and what is no whole number of blocks, is written as every file is.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from contextlib import suppress

from kolm_build.store.write import create, start_flush

BLOCK_BYTES = 4096
"""Where a direct write begins and ends, in memory and in the file."""
WORTH_BYTES = 1 << 20
"""Smaller files stay in memory: a write of theirs would wait for the disk each time."""


class NewFile:
    """An open new file of the objects' mode.

    Args:
        path: Where it comes to be.
        size_bytes: How long it will be.
    """

    def __init__(self, path: str, size_bytes: int) -> None:
        self.fd = create(path)
        self._may_be_direct = size_bytes >= WORTH_BYTES
        self._is_direct = False
        self._offset = 0

    def write(self, data: memoryview) -> None:
        """Write the next bytes; they go to the disk at once, or begin to.

        Args:
            data: Best a whole number of blocks that lie at an address divisible by a block's size.
        """
        if self._may_be_direct:
            self._set_direct(on=len(data) % BLOCK_BYTES == 0)
        while data:
            count = self._write_some(data)
            if not self._is_direct:
                start_flush(self.fd, self._offset, count)
            self._offset += count
            data = data[count:]

    def close(self) -> None:
        """Close it; it is durable only once it was flushed."""
        os.close(self.fd)

    def _write_some(self, data: memoryview) -> int:
        try:
            return os.write(self.fd, data)
        except OSError as error:
            if not self._is_direct or error.errno != errno.EINVAL:
                raise
        self._set_direct(on=False)
        return os.write(self.fd, data)

    def _set_direct(self, *, on: bool) -> None:
        """Change to direct writes or from them; where they end or are refused, it is for good."""
        self._may_be_direct = on
        if on == self._is_direct:
            return
        flags = fcntl.fcntl(self.fd, fcntl.F_GETFL) & ~os.O_DIRECT
        try:
            fcntl.fcntl(self.fd, fcntl.F_SETFL, flags | (os.O_DIRECT if on else 0))
            self._is_direct = on
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._may_be_direct = False


def buffers(size_bytes: int, count: int) -> list[memoryview]:
    """Memory to read into and to write from directly: each begins at a page's beginning."""
    memory = mmap.mmap(-1, size_bytes * count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = memoryview(memory)
    return [whole[at : at + size_bytes] for at in range(0, len(whole), size_bytes)]
