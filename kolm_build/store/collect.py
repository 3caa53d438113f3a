"""Garbage collection, beside builders.

What is dead is decided from a snapshot (core/gc.py). Then one transaction looks at what was
pinned or rooted since, and takes away the rows of what is still dead; only after that commit the
files leave, each in a transaction that sees that nobody published it again. Derivations, claims
and logs are never dropped: they are small, and they are the memory of the project.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from datetime import date

from kolm_build.core.closure import closure
from kolm_build.core.digest import Digest
from kolm_build.core.gc import GcPlan, plan_gc
from kolm_build.store import lockfile, repack, roots
from kolm_build.store.index import Index, Row
from kolm_build.store.layout import Form, Kind, Layout
from kolm_build.store.references import references
from kolm_build.store.restore import Reader
from kolm_build.store.session import Session, sweep
from kolm_build.store.survey import Found, survey
from kolm_build.store.trash import empty_trash, to_trash
from kolm_build.store.unpacked import remove_dead

_BATCH = 1000
_COLLECTED = (Kind.BLOB, Kind.TREE)


class Collector:
    """Decides and deletes in one store.

    Args:
        layout: The store's paths.
        index: Its index.
        reader: Reads its records.
        today: Roots that end before this day are over; None ends none.
    """

    def __init__(self, layout: Layout, index: Index, reader: Reader, *, today: date | None) -> None:
        self._layout = layout
        self._index = index
        self._reader = reader
        self._today = today

    def plan(self) -> GcPlan:
        """What would go now."""
        return plan_gc(self._roots(), references=self._references, sizes=self._sizes())

    def carry_out(self, session: Session) -> GcPlan:
        """Delete what no root or session reaches; what was deleted.

        Args:
            session: This process's own, to write aside what is packed anew.
        """
        with self._index.transaction():
            sweep(self._layout, self._index)
            every = roots.listed(self._index)
            over = [root.name for root in every if not root.holds(self._today)]
            roots.remove(self._layout, self._index, over)
        plan = self._without_late(self.plan())
        repack.repack(self._layout, self._index, self._reader, session)
        remove_dead(self._layout, self._index)
        self._empty()
        return plan

    def _without_late(self, plan: GcPlan) -> GcPlan:
        """Take away the rows of what is dead, but for what came to life since the snapshot."""
        known = {*plan.live, *plan.dead}
        with self._index.transaction():
            published = {row.digest for row in self._rows()} - known
            rooted = set(self._roots()) - plan.live
            late = closure(sorted(published | rooted), self._unless(plan.live))
            plan = _less(plan, late, self._sizes())
            for kind in _COLLECTED:
                self._index.remove(kind, plan.dead)
            repack.remove_empty(self._index)
        return plan

    def _unless(self, live: Set[Digest]) -> Callable[[Digest], Iterable[Digest]]:
        return lambda digest: () if digest in live else self._references(digest)

    def _references(self, digest: Digest) -> Iterable[Digest]:
        return references(self._index, self._reader, digest)

    def _roots(self) -> Iterator[Digest]:
        for root in roots.listed(self._index):
            if root.holds(self._today):
                yield from (*root.trees, *root.derivations)
        yield from self._index.pinned()

    def _rows(self) -> list[Row]:
        return [row for kind in _COLLECTED for row in self._index.rows(kind)]

    def _sizes(self) -> dict[Digest, int]:
        return {row.digest: self._disk_bytes(row) for row in self._rows()}

    def _disk_bytes(self, row: Row) -> int:
        """A joined blob's own file is only its record; its parts are objects too."""
        if row.form is not Form.JOINED:
            return row.size_bytes
        return os.stat(row.path(self._layout)).st_size

    def _empty(self) -> None:
        """Throw away every file without a row, and what builders left behind."""
        forms = {row.digest: row.form for row in self._index.rows(Kind.BLOB)}
        for kind in _COLLECTED:
            files = [found for found in survey(self._layout, kind) if isinstance(found, Found)]
            for start in range(0, len(files), _BATCH):
                self._throw_away(files[start : start + _BATCH], forms)
        empty_trash(self._layout)
        for name in os.listdir(self._layout.folder("locks")):
            with suppress(FileNotFoundError):
                lockfile.remove_free(f"{self._layout.folder('locks')}/{name}")

    def _throw_away(self, files: Sequence[Found], forms: Mapping[Digest, Form]) -> None:
        """Move what has no row to the trash; inside a transaction, since publishing is too.

        Args:
            files: What lies there.
            forms: How blobs lie in the store, as of a moment ago: says which to look at closely.
        """
        with self._index.transaction():
            valid = {
                kind: self._index.present(kind, [one.digest for one in files if one.kind is kind])
                for kind in {found.kind for found in files}
            }
            for found in files:
                doubtful = forms.get(found.digest, found.form) is not found.form
                if found.digest not in valid[found.kind] or (
                    doubtful and found.kind is Kind.BLOB and self._is_old_form(found)
                ):
                    to_trash(self._layout, found.path)

    def _is_old_form(self, found: Found) -> bool:
        """Whether a blob lies in the store in another form than this file."""
        row = self._index.row(found.kind, found.digest)
        return row is not None and row.form is not found.form


def _less(plan: GcPlan, late: Collection[Digest], sizes: Mapping[Digest, int]) -> GcPlan:
    """`plan` without what came to life."""
    alive = frozenset(late)
    dead = tuple(digest for digest in plan.dead if digest not in alive and digest in sizes)
    freed = sum(sizes[digest] for digest in dead)
    return GcPlan(live=plan.live | alive, dead=dead, freed_bytes=freed)
