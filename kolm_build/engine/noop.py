"""The build that has nothing to do, told without working anything out (spec/engine.md).

After a build its result is noted under a key of everything that was read to find it: recipe,
lock, program version, machine, what was wanted. The note is believed only while each local source
has the size, times and inode that it had, and the store still has the results and no other claim
for them. A lost or unreadable note costs time and nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence

from blake3 import blake3

from kolm_build.core import cbor
from kolm_build.errors import KolmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kolm_build.store.glance import Glance
    from kolm_build.store.local import LocalStore

VERSION = 1

RACY_NS = 2_000_000_000
"""A source changed less than this ago may change again without its time showing it."""

_CONTEXT = "kolm_build 2026 memo v1"
"""`RecordKind.MEMO`; dataclasses alone would cost a third of the time of a no-op."""


class Noted:
    """One wanted output, by raw digests.

    Attributes:
        name: What it was asked for as, such as ``package.out``.
        key: The digest of its resolved derivation.
        output: The output's name.
        content: Its content.
    """

    __slots__ = ("content", "key", "name", "output")

    def __init__(self, *, name: str, key: bytes, output: str, content: bytes) -> None:
        self.name = name
        self.key = key
        self.output = output
        self.content = content

    def to_value(self) -> list[object]:
        """The plain value."""
        return [self.name, self.key, self.output, self.content]


def memo_key(*parts: object) -> bytes:
    """The raw digest under which a memo about `parts` is kept."""
    return blake3(cbor.encode(list(parts)), derive_key_context=_CONTEXT).digest()


def noop_key(
    *, recipe: bytes, lock: bytes, version: str, platform: str, wanted: Sequence[str | bytes]
) -> bytes:
    """The key of a build's note, a raw digest.

    Args:
        recipe: The recipe's bytes.
        lock: The lock's bytes.
        version: The program's version; with its code's digest where that is being edited.
        platform: The machine's kind.
        wanted: What was asked for, in order.
    """
    return memo_key("noop", VERSION, recipe, lock, version, platform, list(wanted))


def remember(
    store: LocalStore,
    key: bytes,
    results: Sequence[Noted],
    *,
    sources: Sequence[str],
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
    from kolm_build.core.digest import Digest

    stamps = list(_stamps(sources))
    if any(time > now_ns - RACY_NS for _, _, *times, _ in stamps for time in times):
        return False
    value = {
        "results": [one.to_value() for one in results],
        "sources": [list(stamp) for stamp in stamps],
    }
    store.memo_put(Digest(key), cbor.encode(value))
    return True


def recall(store: Glance, key: bytes, *, sources: Sequence[str]) -> tuple[Noted, ...] | None:
    """The noted results, if they still hold.

    Args:
        store: Has the note.
        key: Its key.
        sources: The local files and folders that a build would read.

    Returns:
        None where the build must be worked out.
    """
    data = store.memo(key)
    if data is None:
        return None
    note = _decode(data)
    if note is None or note[1] != [list(stamp) for stamp in _stamps(sources)]:
        return None
    results, _ = note
    holds = all(store.contents(one.key, one.output) == {one.content} for one in results)
    return results if holds and store.has_trees(one.content for one in results) else None


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
            return Noted(name=name, key=key, output=output, content=content)
        case _:
            raise ValueError("not a result")


_Stamp = tuple[bytes, int, int, int, int]


def _stamps(sources: Iterable[str]) -> Iterator[_Stamp]:
    """Path, size, modification and change time, inode of each source and all below it."""
    for source in sources:
        yield _stamp(source)
        for folder, below, names in os.walk(source):
            below.sort()
            yield from (_stamp(f"{folder}/{name}") for name in (*below, *sorted(names)))


def _stamp(path: str) -> _Stamp:
    name = os.fsencode(path)  # a path need not be text that a record may hold
    try:
        facts = os.stat(path)  # noqa: PTH116  # thousands of them: a Path method is slower
    except OSError:
        return (name, -1, 0, 0, 0)
    return (name, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino)
