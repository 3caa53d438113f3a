"""How much a store holds: what the files of each root add up to, and what is on the disk."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from kolm_build.core.closure import closure
from kolm_build.core.digest import Digest
from kolm_build.core.tree import File
from kolm_build.store import roots
from kolm_build.store.index import Index
from kolm_build.store.layout import Form, Kind, Layout
from kolm_build.store.references import references
from kolm_build.store.restore import Reader


@dataclass(frozen=True, slots=True, kw_only=True)
class RootUsage:
    """One root's share.

    Attributes:
        name: The root's name.
        logical_bytes: The sizes of all files that it keeps, each tree counted once.
        disk_bytes: What these files take in the store.
        own_bytes: The part of that which no other root keeps.
    """

    name: str
    logical_bytes: int
    disk_bytes: int
    own_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """The whole store.

    Attributes:
        objects: How many blobs and trees it holds.
        logical_bytes: The sizes of the files of all trees, as if each tree were a folder.
        disk_bytes: What the objects take.
        roots: Each root's share, by name.
    """

    objects: int
    logical_bytes: int
    disk_bytes: int
    roots: tuple[RootUsage, ...]


def measure(layout: Layout, index: Index, reader: Reader) -> Usage:
    """The usage of a store."""
    sizes = _disk_sizes(layout, index)
    live = {
        root.name: frozenset(
            closure((*root.trees, *root.derivations), lambda one: references(index, reader, one))
        )
        for root in roots.listed(index)
    }
    trees = frozenset(row.digest for row in index.rows(Kind.TREE))
    return Usage(
        objects=len(sizes),
        logical_bytes=_logical(trees, trees, reader),
        disk_bytes=sum(sizes.values()),
        roots=tuple(
            RootUsage(
                name=name,
                logical_bytes=_logical(kept, trees, reader),
                disk_bytes=sum(sizes.get(one, 0) for one in kept),
                own_bytes=sum(sizes.get(one, 0) for one in kept - _others(live, name)),
            )
            for name, kept in live.items()
        ),
    )


def _others(live: dict[str, frozenset[Digest]], name: str) -> frozenset[Digest]:
    return frozenset().union(*(kept for other, kept in live.items() if other != name))


def _disk_sizes(layout: Layout, index: Index) -> dict[Digest, int]:
    sizes = {row.digest: row.size_bytes for row in index.rows(Kind.TREE)}
    for row in index.rows(Kind.BLOB):
        joined = row.form is Form.JOINED
        sizes[row.digest] = os.stat(row.path(layout)).st_size if joined else row.size_bytes
    return sizes


def _logical(kept: Iterable[Digest], trees: frozenset[Digest], reader: Reader) -> int:
    """The sizes of the files of the topmost trees among `kept`, subfolders included."""
    mine = [reader.tree(one) for one in kept if one in trees]
    return sum(
        node.size_bytes for tree in mine for _, node in tree.entries if isinstance(node, File)
    )
