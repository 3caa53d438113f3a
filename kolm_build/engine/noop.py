"""The build that has nothing to do, told without working anything out (spec/engine.md).

After a build its result is noted under a key of everything that was read to find it: recipe,
lock, program version, machine, what was wanted. The note is believed only while each local source
has the size, times and inode that it had, and the store still has the results and no other claim
for them. A lost or unreadable note costs time and nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kolm_build.core import cbor
from kolm_build.core.digest import Digest, RecordKind
from kolm_build.errors import KolmError

VERSION = 1

RACY_NS = 2_000_000_000
"""A source changed less than this ago may change again without its time showing it."""


class NotedStore(Protocol):
    """The part of a store that a no-op build uses."""

    def memo_get(self, key: Digest) -> bytes | None:
        """What was noted under `key`."""

    def memo_put(self, key: Digest, value: bytes) -> None:
        """Note `value` under `key`."""

    def has_trees(self, digests: Iterable[Digest]) -> AbstractSet[Digest]:
        """Which trees are there."""

    def contents_of(
        self, keys: Sequence[tuple[Digest, str]]
    ) -> Mapping[tuple[Digest, str], tuple[Digest, ...]]:
        """The distinct contents claimed for each key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Noted:
    """One wanted output.

    Attributes:
        name: What it was asked for as, such as ``package.out``.
        key: The digest of its resolved derivation.
        output: The output's name.
        content: Its content.
    """

    name: str
    key: Digest
    output: str
    content: Digest


def noop_key(
    *, recipe: bytes, lock: bytes, version: str, platform: str, wanted: Sequence[str]
) -> Digest:
    """The key of a build's note.

    Args:
        recipe: The recipe's bytes.
        lock: The lock's bytes.
        version: The program's version; with its code's digest where that is being edited.
        platform: The machine's kind.
        wanted: What was asked for, in order.
    """
    value = ["noop", VERSION, recipe, lock, version, platform, list(wanted)]
    return Digest.of_record(cbor.encode(value), RecordKind.MEMO)


def remember(
    store: NotedStore,
    key: Digest,
    results: Sequence[Noted],
    *,
    sources: Sequence[Path],
    now_ns: int,
) -> bool:
    """Note the results of a build that ended well.

    Args:
        store: Keeps the note.
        key: Its key.
        results: What was wanted and came out.
        sources: The local files and folders that were read.
        now_ns: The time on the clock that stamps files.

    Returns:
        False where a source is too fresh to tell a later change by its time; nothing is noted.
    """
    stamps = list(_stamps(sources))
    if any(time > now_ns - RACY_NS for _, _, *times, _ in stamps for time in times):
        return False
    value = {
        "results": [[one.name, one.key.raw, one.output, one.content.raw] for one in results],
        "sources": [list(stamp) for stamp in stamps],
    }
    store.memo_put(key, cbor.encode(value))
    return True


def recall(store: NotedStore, key: Digest, *, sources: Sequence[Path]) -> tuple[Noted, ...] | None:
    """The noted results, if they still hold.

    Args:
        store: Has the note.
        key: Its key.
        sources: The local files and folders that a build would read.

    Returns:
        None where the build must be worked out.
    """
    data = store.memo_get(key)
    if data is None:
        return None
    note = _decode(data)
    if note is None or note[1] != [list(stamp) for stamp in _stamps(sources)]:
        return None
    results, _ = note
    contents = {one.content for one in results}
    if store.has_trees(contents) != contents:
        return None
    claims = store.contents_of([(one.key, one.output) for one in results])
    holds = all(claims.get((one.key, one.output)) == (one.content,) for one in results)
    return results if holds else None


def _decode(data: bytes) -> tuple[tuple[Noted, ...], object] | None:
    try:
        value = cbor.decode(data)
        match value:
            case {"results": list(rows), "sources": sources}:
                return tuple(_noted(row) for row in rows), sources
            case _:
                return None
    except (KolmError, ValueError):
        return None


def _noted(row: object) -> Noted:
    match row:
        case [str(name), bytes(key), str(output), bytes(content)]:
            return Noted(name=name, key=Digest(key), output=output, content=Digest(content))
        case _:
            raise ValueError("not a result")


_Stamp = tuple[str, int, int, int, int]


def _stamps(sources: Iterable[Path]) -> Iterator[_Stamp]:
    """Path, size, modification and change time, inode of each source and all below it."""
    for source in sources:
        yield _stamp(str(source))
        for folder, below, names in os.walk(source):
            below.sort()
            yield from (_stamp(f"{folder}/{name}") for name in (*below, *sorted(names)))


def _stamp(path: str) -> _Stamp:
    try:
        facts = os.stat(path)  # noqa: PTH116  # thousands of them: a Path method is slower
    except OSError:
        return (path, -1, 0, 0, 0)
    return (path, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino)
