"""What garbage collection may delete: a decision as a value, carried out by the store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from kolm_build.core.digest import Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class GcPlan:
    """What stays and what goes.

    Attributes:
        live: Objects that a root reaches.
        dead: The other objects, sorted.
        freed_bytes: The sum of their sizes.
    """

    live: frozenset[Digest]
    dead: tuple[Digest, ...]
    freed_bytes: int


def plan_gc(
    roots: Iterable[Digest],
    *,
    references: Callable[[Digest], Iterable[Digest]],
    sizes: Mapping[Digest, int],
) -> GcPlan:
    """Which of the objects in `sizes` no root reaches.

    Args:
        roots: What is kept, whether it is there or not.
        references: What an object names: a tree its files and subfolders.
        sizes: Every object that is there, with its bytes on disk.
    """
    live: set[Digest] = set()
    todo = list(roots)
    while todo:
        digest = todo.pop()
        if digest not in live:
            live.add(digest)
            todo.extend(references(digest))
    dead = tuple(sorted(digest for digest in sizes if digest not in live))
    return GcPlan(live=frozenset(live), dead=dead, freed_bytes=sum(sizes[one] for one in dead))
