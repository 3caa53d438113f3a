"""A store's folder that is open: what every part of `LocalStore` reads and writes through."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from threading import RLock
from types import TracebackType
from typing import Self, TypeVar

from kolm_build.core.digest import Digest
from kolm_build.errors import MissingObjectError, ReadOnlyStoreError
from kolm_build.store.door import door
from kolm_build.store.index import Index
from kolm_build.store.layout import Kind, Layout
from kolm_build.store.restore import Reader
from kolm_build.store.session import Session
from kolm_build.store.write import Batch, VanishedError

ATTEMPTS = 5
"""How often a write starts again because the collector took what it relied on."""

T = TypeVar("T")


class Opened:
    """A folder that is open as a store.

    Args:
        layout: Its paths.
        index: Its index.
        read_only: Refuse every write.
    """

    def __init__(self, layout: Layout, index: Index, *, read_only: bool) -> None:
        self._layout = layout
        self._index = index
        self._reader = Reader(layout, index)
        self._read_only = read_only
        self._session: Session | None = None
        self._lock = RLock()

    @property
    def root(self) -> Path:
        """The store's folder."""
        return Path(self._layout.root)

    @property
    def is_read_only(self) -> bool:
        """Whether every write is refused."""
        return self._read_only

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of everything that this process pinned."""
        with self._lock, door(self._layout.root):
            try:
                if self._session is not None:
                    self._session.close()
                    self._session = None
            finally:
                self._index.close()

    def pin(self, digests: Iterable[Digest]) -> set[Digest]:
        """Keep trees until the store is closed, even from a collector; those that are here."""
        wanted = set(digests)
        with door(self._layout.root):
            session = self._writer()
            with self._index.transaction():
                found = self._index.present(Kind.TREE, wanted)
                self._index.pin(session.name, found)
        return found

    def _check_writable(self) -> None:
        if self._read_only:
            raise ReadOnlyStoreError("the store is open for reading only", file=self._layout.root)

    def _writer(self) -> Session:
        """This process's session, begun when it first writes."""
        self._check_writable()
        with self._lock:
            if self._session is None:
                self._session = Session(self._layout, self._index)
            return self._session

    def _written(self, keep: Callable[[Batch], T], *, pin: Callable[[T], Digest]) -> T:
        """What `keep` gives, once all that it put into a batch is durable and valid."""

        def keep_all(batch: Batch) -> T:
            made = keep(batch)
            batch.publish(pins=[pin(made)])
            return made

        return self._attempted(keep_all)

    def _attempted(self, keep: Callable[[Batch], T]) -> T:
        """What `keep` gives, tried again where the collector took what it relied on."""
        with door(self._layout.root):
            session = self._writer()
            for attempt in range(ATTEMPTS):
                try:
                    with Batch(self._layout, self._index, session) as batch:
                        return keep(batch)
                except VanishedError:
                    if attempt == ATTEMPTS - 1:
                        raise
        raise AssertionError("unreachable")


def absent(digest: Digest) -> MissingObjectError:
    """The error of an object that is not here."""
    return MissingObjectError("not in the store", expected=str(digest))
