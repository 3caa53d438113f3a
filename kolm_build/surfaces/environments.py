"""Where a build finds its environment: installed here, or in a store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from kolm_build.core.digest import Digest
from kolm_build.engine.environment import InstalledEnvironment
from kolm_build.engine.sandbox import Surroundings
from kolm_build.engine.stored import Stored, find, surroundings
from kolm_build.errors import MachineMismatchError
from kolm_build.store.local import LocalStore

_ADVICE = (
    "Install the locked versions, or import a pack that holds the environment:"
    " `kolm env add` takes it into the store where it is installed."
)


class FoundEnvironments:
    """The environments of a lock, wherever they are. A context manager.

    What is installed is used if it is the locked one; else what a store holds, unpacked.

    Args:
        installed: What is installed here.
        stores: Where to look, in order.
        stored_only: Use what a store holds, and the system's libraries that came with it.
        on_unpack: Called before one is unpacked, which takes a while.
    """

    def __init__(
        self,
        installed: InstalledEnvironment,
        stores: Sequence[LocalStore],
        *,
        stored_only: bool,
        on_unpack: Callable[[], None] = lambda: None,
    ) -> None:
        self._installed = installed
        self._stores = stores
        self._stored_only = stored_only
        self._on_unpack = on_unpack
        self._opened = ExitStack()
        self._known: dict[Digest, Surroundings] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._opened.close()

    def __call__(self, digest: Digest) -> Surroundings:
        """What a step in the environment `digest` sees.

        Raises:
            MachineMismatchError: It is neither installed nor in a store.
        """
        if digest not in self._known:
            self._known[digest] = self._found(digest)
        return self._known[digest]

    def _found(self, digest: Digest) -> Surroundings:
        if self._stored_only:
            found = self._stored(digest)
            if found is None:
                raise MachineMismatchError(
                    "the environment is not in the store", expected=str(digest), advice=_ADVICE
                )
            return found
        try:
            return self._installed(digest)
        except MachineMismatchError as error:
            found = self._stored(digest)
            if found is None:
                error.advice = _ADVICE
                raise
            return found

    def _stored(self, digest: Digest) -> Surroundings | None:
        for store in self._stores:
            stored = find(store, digest)
            if stored is not None:
                return self._unpacked(store, stored)
        return None

    def _unpacked(self, store: LocalStore, stored: Stored) -> Surroundings:
        if store.is_read_only:
            store = self._opened.enter_context(LocalStore.open(store.root))
        return surroundings(store, stored, native=self._stored_only, on_unpack=self._on_unpack)
