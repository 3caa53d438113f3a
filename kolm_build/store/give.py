"""What a store gives to another: objects as they are kept, every byte hashed on the way out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from kolm_build.core.closure import closure
from kolm_build.core.digest import Digest, RecordKind
from kolm_build.core.tree import Tree
from kolm_build.store import pack
from kolm_build.store.door import door
from kolm_build.store.index import Index
from kolm_build.store.inventory import FEW_BLOBS, Inventory, is_small, subfolders
from kolm_build.store.layout import Form, Kind, Layout
from kolm_build.store.restore import Reader

PACK_BYTES = 8 << 20


class Blob:
    """A blob to be copied: a `Source`.

    Args:
        giver: Whose it is.
        b3: Its digest.
        size_bytes: Its size.
    """

    def __init__(self, giver: Giver, b3: Digest, size_bytes: int) -> None:
        self._giver = giver
        self.b3 = b3
        self.size_bytes = size_bytes

    def pieces(self) -> Iterator[bytes]:
        """Its bytes, the last of them only once all are known to be right."""
        return self._giver.stream(self.b3)


class Giver:
    """Reads one store's objects for another. Threads may share it.

    Args:
        layout: The store's paths.
        index: Its index.
        reader: Reads its objects.
    """

    def __init__(self, layout: Layout, index: Index, reader: Reader) -> None:
        self._root = layout.root
        self._index = index
        self._reader = reader

    def inventory(self, tree: Digest) -> Inventory:
        """What a tree consists of, small blobs not packed yet.

        Raises:
            MissingObjectError: The tree is not in the store.
        """
        with door(self._root):
            trees: dict[Digest, Tree] = {}

            def below(one: Digest) -> list[Digest]:
                trees[one] = self._reader.tree(one)
                return subfolders(trees[one])

            closure([tree], below)
            whole = Inventory(tree=tree, trees=trees, joins={})
            joined = self._index.present(Kind.BLOB, whole.blobs(), form=Form.JOINED)
            joins = {b3: self._reader.leaves(b3) for b3 in joined}
            return Inventory(tree=tree, trees=trees, joins=joins)

    def stream(self, b3: Digest) -> Iterator[bytes]:
        """A blob's bytes; see `Reader.stream`."""
        with door(self._root):
            yield from self._reader.stream(b3)

    def packs(self, inventory: Inventory) -> Iterator[bytes]:
        """Packs of the small blobs of a tree; none where these are few."""
        sizes = inventory.leaves()
        small = sorted((b3 for b3, size in sizes.items() if is_small(size)), key=lambda b3: b3.raw)
        if len(small) <= FEW_BLOBS:
            return
        for run in _runs(small, sizes):
            with door(self._root):
                yield pack.encode(list(self._reader.blobs(run)))

    def derivation(self, digest: Digest) -> bytes:
        """A derivation's record."""
        with door(self._root):
            return self._reader.record(Kind.DERIVATION, digest, context=RecordKind.DERIVATION)


def _runs(small: Iterable[Digest], sizes: dict[Digest, int]) -> Iterator[Sequence[Digest]]:
    """`small` cut into runs that make packs of a good size."""
    run: list[Digest] = []
    count = 0
    for b3 in small:
        if count + sizes[b3] > PACK_BYTES:
            yield run
            run, count = [], 0
        run.append(b3)
        count += sizes[b3]
    if run:
        yield run
