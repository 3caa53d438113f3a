"""What is kept of a store, what goes, and whether all of it holds."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from kolm_build.core.digest import Digest
from kolm_build.store.door import door
from kolm_build.store.layout import Layout
from kolm_build.store.opened import Opened

if TYPE_CHECKING:
    from datetime import date

    from kolm_build.core.gc import GcPlan
    from kolm_build.store.roots import Root
    from kolm_build.store.usage import Usage
    from kolm_build.store.verify import Report, Substitute


class Upkeep(Opened):
    """Roots, collection and checks of an open store."""

    def add_root(
        self,
        name: str,
        *,
        trees: Iterable[Digest] = (),
        derivations: Iterable[Digest] = (),
        expires: date | None = None,
        path: Path | None = None,
    ) -> None:
        """Keep trees and derivations from the collector; replaces the root of that name.

        Args:
            name: The root's name.
            trees: Trees, kept with all below them.
            derivations: Derivations, kept with their outputs and inputs.
            expires: The last day on which the root holds.
            path: A file outside the store; when it is gone, the root is over.
        """
        from kolm_build.store import roots
        from kolm_build.store.roots import Root

        root = Root(
            name=name,
            trees=tuple(sorted(set(trees))),
            derivations=tuple(sorted(set(derivations))),
            expires=expires,
            path=None if path is None else os.path.abspath(path),
        )
        with door(self._layout.root):
            roots.add(self._layout, self._index, self._writer(), root)

    def roots(self) -> tuple[Root, ...]:
        """Every root, by name."""
        from kolm_build.store import roots

        with door(self._layout.root):
            return roots.listed(self._index)

    def remove_root(self, name: str) -> None:
        """Let go of a root; one that is not there is no error."""
        from kolm_build.store import roots

        self._check_writable()
        with door(self._layout.root), self._index.transaction():
            roots.remove(self._layout, self._index, [name])

    def collect(self, *, dry_run: bool, today: date | None = None) -> GcPlan:
        """Delete, beside running builds, what no root and no running process needs.

        Args:
            dry_run: Only say what would go.
            today: Roots that end before this day are over; None ends none.
        """
        from kolm_build.store.collect import Collector

        if not dry_run:
            self._check_writable()
        with self._lock, door(self._layout.root):
            collector = Collector(self._layout, self._index, self._reader, today=today)
            return collector.plan() if dry_run else collector.carry_out(self._writer())

    def fsck(
        self,
        *,
        repair: bool = False,
        deep: bool = False,
        substitute: Substitute | None = None,
    ) -> Report:
        """Hash everything again.

        Args:
            repair: Put right what can be: modes, bytes that `substitute` has; the rest becomes
                invalid, so that the next build makes it again.
            deep: Check SHA-256 and the whole of files that are stored in parts, too.
            substitute: Gives the bytes of a small object, or None.
        """
        from kolm_build.store.verify import Verifier

        if repair:
            self._check_writable()
        with self._lock, door(self._layout.root):
            verifier = Verifier(self._layout, self._index, self._reader, deep=deep)
            report = verifier.check()
            if not repair:
                return report
            return verifier.repair(
                report, self._writer(), substitute or (lambda _kind, _digest: None)
            )

    @classmethod
    def rebuild_index(cls, root: Path) -> int:
        """Make the index of a closed store again from its files; how many objects hold."""
        from kolm_build.store.rebuild import rebuild_index

        layout = Layout(os.path.abspath(root))
        with door(layout.root):
            layout.is_made()
            return rebuild_index(layout)

    def usage(self) -> Usage:
        """How many bytes each root has, and how many are on the disk."""
        from kolm_build.store.usage import measure

        with door(self._layout.root):
            return measure(self._layout, self._index, self._reader)
