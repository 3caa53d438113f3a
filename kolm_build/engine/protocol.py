"""What the engine needs of a store, a step's description and a builder.

The engine never imports steps or a particular store: they come in as arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kolm_build.core.derivation import Derivation
from kolm_build.core.digest import Digest
from kolm_build.core.plan import Key
from kolm_build.core.realisation import Realisation
from kolm_build.core.tree import Tree
from kolm_build.engine.events import OnEvent


class StoredRealisation(Protocol):
    """A realisation with what happened around it."""

    @property
    def realisation(self) -> Realisation:
        """The record itself."""

    @property
    def circumstances(self) -> Mapping[str, object]:
        """Sandbox level, machine, times, log."""


class Store(Protocol):
    """The part of a store that the engine uses."""

    def read_blob(self, b3: Digest) -> bytes:
        """The bytes of a blob."""

    def ingest(self, path: Path) -> Digest:
        """Keep a folder; its tree digest."""

    def has_tree(self, digest: Digest) -> bool:
        """Whether a tree is there, complete and valid."""

    def has_trees(self, digests: Iterable[Digest]) -> AbstractSet[Digest]:
        """Those that `has_tree` affirms."""

    def pin(self, digests: Iterable[Digest]) -> AbstractSet[Digest]:
        """Those that `has_tree` affirms, which no collector takes until the store is closed."""

    def tree(self, digest: Digest) -> Tree:
        """The record of a tree."""

    def materialise(self, tree: Digest, dest: Path) -> None:
        """Copy a tree to the new folder `dest`, read-only, re-hashing."""

    def put_derivation(self, derivation: Derivation) -> Digest:
        """Keep a derivation."""

    def put_log(self, data: bytes) -> Digest:
        """Keep a log."""

    def read_log(self, digest: Digest) -> bytes:
        """A log."""

    def add_realisation(
        self,
        realisation: Realisation,
        *,
        derivation: Digest,
        circumstances: Mapping[str, object],
    ) -> None:
        """Keep a realisation; others of the same key stay."""

    def realisations(self, resolved: Digest, output: str) -> Sequence[StoredRealisation]:
        """All realisations of one output."""

    def contents_of(self, keys: Sequence[Key]) -> Mapping[Key, tuple[Digest, ...]]:
        """The distinct contents claimed for each key; a key without any is left out."""

    def lock(
        self, resolved: Digest, *, on_wait: Callable[[str], None], holder: str
    ) -> AbstractContextManager[None]:
        """The kernel's lock for building one derivation; `on_wait` learns who holds it."""

    def scratch(self) -> AbstractContextManager[Path]:
        """A private folder on the store's file system, removed at the end."""

    def memo_get(self, key: Digest) -> bytes | None:
        """What was noted under `key`."""

    def memo_put(self, key: Digest, value: bytes) -> None:
        """Note `value` under `key`; a memo may be lost at any time."""


class Arrived(Protocol):
    """A tree that a substituter gave."""

    @property
    def source(self) -> str:
        """The substituter's address."""

    @property
    def bytes_fetched(self) -> int:
        """How many bytes came."""


class Substitutes(Protocol):
    """Others that may have what a build would make. Threads may share it.

    None of these raises because a substituter failed.
    """

    def contents_of(self, keys: Sequence[Key]) -> Mapping[Key, tuple[Digest, ...]]:
        """The contents to believe in for each key; two or more are contested."""

    def keep(self, resolved: Digest, derivation: Digest) -> None:
        """Keep in the store what is believed about a resolved derivation."""

    def offered(self, trees: Iterable[Digest]) -> AbstractSet[Digest]:
        """Those trees that somebody seems to have."""

    def fetch(self, tree: Digest, on_bytes: Callable[[int, int], None]) -> Arrived | None:
        """Have a tree be in the store; None where nobody could give it."""


class StepShape(Protocol):
    """What the engine must know of a step to run it."""

    @property
    def network(self) -> bool:
        """Whether its sandbox has a network."""

    @property
    def environment(self) -> bool:
        """Whether it sees the installed distributions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildResult:
    """A derivation's outputs, in the store.

    Attributes:
        contents: Output name to content.
        circumstances: What happened around it.
        fetched: Whether the step had the network.
        wall_ms: How long the step process ran.
    """

    contents: Mapping[str, Digest]
    circumstances: Mapping[str, object]
    fetched: bool
    wall_ms: int


class Builder(Protocol):
    """What runs a step somewhere."""

    def build(self, derivation: Derivation, resolved: Derivation, on_event: OnEvent) -> BuildResult:
        """Run the step of `resolved` and keep its outputs.

        Raises:
            KolmError: It could not be built; its log is kept.
        """

    def stop(self) -> None:
        """End every step that runs and start no other, for good; none is left on return."""
