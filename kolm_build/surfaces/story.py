"""The account of a build that travels inside its artifact, below `build/` (spec/artifact.md).

Recipe, lock, derivations, the local sources and the steps' code: with the sources that the lock
names by address, enough to build the artifact again from nothing. Files that the lock fetched
are left out; they may be large and belong to others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from kolm_build.core.derivation import Derivation
from kolm_build.core.digest import Digest
from kolm_build.core.lock import Lock, LockedInput, render_lock
from kolm_build.core.source import is_local
from kolm_build.core.tree import Folder, Node, Tree
from kolm_build.store.local import LocalStore
from kolm_build.surfaces.places import LOCK, RECIPE
from kolm_build.surfaces.trees import Files, digest_of, file_node, keep

DERIVATIONS = "derivations"
SOURCES = "sources"
CODE = "code"


@dataclass(frozen=True, slots=True, kw_only=True)
class Storyteller:
    """Tells the story of a build to a store; called with the nodes above the package.

    Attributes:
        recipe_text: The recipe as it was written.
        lock: The lock.
        store: Has the local sources and the code, and takes the story; None to know its digest
            alone.
    """

    recipe_text: bytes
    lock: Lock
    store: LocalStore | None = None

    def __call__(self, nodes: Mapping[str, Derivation]) -> Digest:
        """The content of the story."""
        told = {f"{one.digest.hex}.cbor": one.encode() for one in nodes.values()}
        files = {RECIPE: self.recipe_text, LOCK: render_lock(self.lock).encode()}
        folders = {
            DERIVATIONS: digest_of(told),
            SOURCES: _folder((one.name, one.tree) for one in local_inputs(self.lock)).digest,
            CODE: _folder(self.lock.code.items()).digest,
        }
        story = Tree.of(_entries(files, folders))
        if self.store is not None and not self.store.has_tree(story.digest):
            self._keep(files, told, self.store)
            self.store.put_tree(story)
        return story.digest

    def _keep(self, files: Files, told: Files, store: LocalStore) -> None:
        keep(files, store)
        keep(told, store)
        store.put_tree(_folder((one.name, one.tree) for one in local_inputs(self.lock)))
        store.put_tree(_folder(self.lock.code.items()))


def local_inputs(lock: Lock) -> Iterator[LockedInput]:
    """The inputs that lie beside the recipe."""
    return (one for one in lock.inputs if is_local(one.source))


def _folder(trees: Iterable[tuple[str, Digest]]) -> Tree:
    return Tree.of((name, Folder(tree=tree)) for name, tree in trees)


def _entries(
    files: Mapping[str, bytes], folders: Mapping[str, Digest]
) -> Iterator[tuple[str, Node]]:
    yield from ((name, file_node(data)) for name, data in files.items())
    yield from ((name, Folder(tree=tree)) for name, tree in folders.items())
