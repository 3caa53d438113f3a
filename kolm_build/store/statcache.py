"""The stat cache: what a file's bytes were when it last looked exactly like this.

A file that was written in the same tick as it was hashed may change again and look the same, so
an entry is kept only for a file that had been at rest for a while (git calls the others racy).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from kolm_build.core.digest import Blob, Digest, Sha256
from kolm_build.store.index import Index, chunks, marks

AT_REST_NS = 2_000_000_000
"""Longer than the tick of any file system's clock; the coarsest in use counts two seconds."""

Key = tuple[int, int, int, int, int]


def key_of(stat: os.stat_result) -> Key:
    """What must be the same for a file to be taken as unchanged."""
    return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@dataclass(slots=True)
class StatCache:
    """Digests by what `stat` says, read in batches and written back in one transaction.

    Attributes:
        index: Where they are kept.
        now_ns: The file system's clock before anything was read; 0 keeps nothing new.
    """

    index: Index
    now_ns: int
    _new: list[tuple[object, ...]] = field(default_factory=list)

    def find(self, stats: Sequence[os.stat_result]) -> dict[Key, Blob]:
        """What these files were; a file that looks otherwise has another key."""
        found = {}
        for dev in {stat.st_dev for stat in stats}:
            inodes = [stat.st_ino for stat in stats if stat.st_dev == dev]
            for row in self._rows(dev, inodes):
                key: Key = row[:5]  # type: ignore[assignment]  # the schema's types
                found[key] = _blob(row)
        return found

    def _rows(self, dev: int, inodes: Sequence[int]) -> Iterable[tuple[object, ...]]:
        for some in chunks(inodes):
            query = f"select * from stat where dev = ? and ino in ({marks(some)})"
            yield from self.index.select(query, (dev, *some))

    def is_at_rest(self, stat: os.stat_result) -> bool:
        """Whether a later change of the file would show."""
        return max(stat.st_mtime_ns, stat.st_ctime_ns) + AT_REST_NS < self.now_ns

    def keep(self, stat: os.stat_result, blob: Blob) -> None:
        """Remember what a file holds that was at rest and did not change while it was read."""
        self._new.append((*key_of(stat), blob.b3.raw, blob.sha256.raw))

    def has_new(self) -> bool:
        """Whether `save` has anything to write."""
        return bool(self._new)

    def save(self) -> None:
        """Write what is new; inside the index's transaction."""
        self.index.execute("insert or replace into stat values (?, ?, ?, ?, ?, ?, ?)", self._new)
        self._new.clear()


def _blob(row: tuple[object, ...]) -> Blob:
    size, b3, sha256 = row[2], row[5], row[6]
    return Blob(b3=Digest(b3), sha256=Sha256(sha256), size_bytes=size)  # type: ignore[arg-type]  # the schema's types
