"""The store in a folder: the only writer below its root.

What only some commands need is imported where it is needed: a build that has nothing to do opens
a store, looks, and ends.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from kolm_build.core.digest import Digest
from kolm_build.errors import ReadOnlyStoreError, StoreFormatError
from kolm_build.store.contents import Contents
from kolm_build.store.door import door
from kolm_build.store.exchange import Exchange
from kolm_build.store.index import Index
from kolm_build.store.layout import FORMAT, Layout
from kolm_build.store.lockfile import held
from kolm_build.store.records import Records
from kolm_build.store.session import remove_tree
from kolm_build.store.upkeep import Upkeep
from kolm_build.store.write import flush, write_named


class LocalStore(Contents, Records, Exchange, Upkeep):
    """Objects by content, claims by resolved derivation, in one folder. Threads may share it.

    Open it with `open`; close it, or use it as a context manager.
    """

    @classmethod
    def open(cls, root: Path, *, read_only: bool = False) -> Self:
        """The store at `root`; an empty or missing folder becomes one.

        Raises:
            StoreFormatError: The folder is something else, or a store of another version.
            ReadOnlyStoreError: There is no store, and none may be made.
        """
        layout = Layout(os.path.abspath(root))
        with door(layout.root):
            if not layout.is_made():
                if read_only:
                    raise ReadOnlyStoreError(
                        "there is no store here",
                        file=layout.root,
                        advice="`kolm lock` and `kolm build` make one; --store DIR names another.",
                    )
                _make(layout)
            elif not read_only and not layout.is_whole():
                layout.make()
            index = _index(layout, read_only=read_only)
            return cls(layout, index, read_only=read_only)

    @contextmanager
    def lock(
        self, resolved: Digest, *, on_wait: Callable[[str], None], holder: str | None = None
    ) -> Iterator[None]:
        """Be the only one that builds `resolved`; look again for a claim once inside.

        Args:
            resolved: The resolved derivation.
            on_wait: Told who has the lock, if somebody has.
            holder: Who this is, for the others; by default the process's number.
        """
        self._check_writable()
        path = f"{self._layout.folder('locks')}/{resolved.hex}"
        who = holder or f"process {os.getpid()}"
        with held(path, holder=who, on_wait=on_wait):
            yield

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A private empty folder on the store's file system, removed afterwards."""
        with door(self._layout.root):
            path = self._writer().temp()
            os.mkdir(path, 0o700)
        try:
            yield Path(path)
        finally:
            remove_tree(path)

    def memo_get(self, key: Digest) -> bytes | None:
        """What was remembered under `key`, if anything."""
        with door(self._layout.root):
            for (value,) in self._index.select("select value from memo where key = ?", (key.raw,)):
                return value  # type: ignore[return-value]  # the schema's types
            return None

    def memo_put(self, key: Digest, value: bytes) -> None:
        """Remember something that can be worked out again; it may be forgotten."""
        self._check_writable()
        with door(self._layout.root), self._index.transaction():
            self._index.execute("insert or replace into memo values (?, ?)", [(key.raw, value)])


def _index(layout: Layout, *, read_only: bool) -> Index:
    """The index of a store; made again where there is none, or one of another version."""
    if os.path.exists(layout.database) or read_only:
        index = Index(layout.database, read_only=read_only)
        if index.is_current():
            return index
        index.close()
        if read_only:
            raise StoreFormatError(
                "the index is of another version",
                file=layout.database,
                advice="Open the store for writing once: the index is then made again.",
            )
    from kolm_build.store.rebuild import rebuild_index

    rebuild_index(layout)
    return Index(layout.database, read_only=False)


def _make(layout: Layout) -> None:
    """Make an empty store; the format file comes last and says that all the rest is there."""
    layout.make()
    index = Index(layout.database, read_only=False)
    index.make()
    index.close()
    flush(layout.root)
    temp = f"{layout.folder('tmp')}/format.{os.urandom(8).hex()}"
    write_named(layout.format_file, FORMAT.encode(), temp)
