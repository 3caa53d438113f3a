"""What an object names: a tree its children, a joined blob its parts, a derivation its needs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kolm_build.core.digest import Digest, RecordKind
from kolm_build.core.tree import File, Folder, Tree
from kolm_build.store.index import Index
from kolm_build.store.layout import Form, Kind
from kolm_build.store.restore import Reader

if TYPE_CHECKING:
    from kolm_build.core.derivation import Derivation


def children(tree: Tree) -> Iterator[tuple[Kind, Digest]]:
    """The blobs and trees that a tree's entries are."""
    for _, node in tree.entries:
        if isinstance(node, File):
            yield Kind.BLOB, node.b3
        elif isinstance(node, Folder):
            yield Kind.TREE, node.tree


def references(index: Index, reader: Reader, digest: Digest) -> list[Digest]:
    """Everything that `digest` keeps alive directly; nothing where it is not in the store.

    Raises:
        CorruptObjectError: Its record is damaged, so nobody can tell.
    """
    if index.has(Kind.TREE, digest):
        return [child for _, child in children(reader.tree(digest))]
    row = index.row(Kind.BLOB, digest)
    if row is not None:
        return [part for part, _ in reader.parts(digest).parts] if row.form is Form.JOINED else []
    if index.has(Kind.DERIVATION, digest):
        from kolm_build.core.derivation import Derivation
        from kolm_build.store import claims

        data = reader.record(Kind.DERIVATION, digest, context=RecordKind.DERIVATION)
        return [*claims.of_derivation(index, digest), *_needs(Derivation.decode(data))]
    return []


def _needs(derivation: Derivation) -> Iterator[Digest]:
    from kolm_build.core.derivation import ContentInput

    yield derivation.code
    for _, value in derivation.inputs:
        yield value.content if isinstance(value, ContentInput) else value.derivation
