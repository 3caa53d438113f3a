"""Inventories: what a tree consists of, in one file (spec/substituter.md).

Who has a tree's inventory needs no further question to know what to fetch, and believes none of it:
the records prove themselves from the tree's digest down, everything else is hashed when it arrives.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from kolm_build.core import cbor
from kolm_build.core.closure import closure
from kolm_build.core.digest import Digest
from kolm_build.core.fields import Fields
from kolm_build.core.tree import File, Folder, Tree
from kolm_build.errors import InvalidRecordError
from kolm_build.store.pack import COUNT_BYTES, ENTRY_BYTES, MAX_BLOB_BYTES

VERSION = 1
FEW_BLOBS = 32
"""Up to so many small blobs lie by themselves."""

Parts = tuple[tuple[Digest, int], ...]
"""Digest and size of each part of a joined blob, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """What a tree consists of.

    Attributes:
        tree: The tree.
        trees: It and every subfolder, by digest.
        joins: The blobs that are kept in parts, by digest.
        packs: Digest and size of each pack that holds small blobs.
    """

    tree: Digest
    trees: Mapping[Digest, Tree]
    joins: Mapping[Digest, Parts]
    packs: Parts = ()

    def blobs(self) -> dict[Digest, int]:
        """The blobs of all files, with their sizes."""
        return {
            node.b3: node.size_bytes
            for tree in self.trees.values()
            for _, node in tree.entries
            if isinstance(node, File)
        }

    def leaves(self) -> dict[Digest, int]:
        """The blobs that are kept as they are: those of files, and the parts of the others."""
        found: dict[Digest, int] = {}
        for b3, size in self.blobs().items():
            found.update(self.joins.get(b3, ((b3, size),)))
        return found

    def bottom_up(self) -> tuple[Tree, ...]:
        """Every tree, each after its subfolders."""
        order = closure([self.tree], lambda one: subfolders(self.trees[one]))
        return tuple(self.trees[one] for one in order)

    def encode(self) -> bytes:
        """The one spelling."""
        return cbor.encode(
            {
                "v": VERSION,
                "tree": self.tree.raw,
                "trees": [self.trees[one].encode() for one in sorted(self.trees)],
                "joins": [[b3.raw, _pairs(self.joins[b3])] for b3 in sorted(self.joins)],
                "packs": _pairs(sorted(self.packs)),
            }
        )

    @classmethod
    def decode(cls, data: bytes, tree: Digest) -> Self:
        """The inverse of `encode`, strict.

        Args:
            data: The file.
            tree: Whose inventory it must be.

        Raises:
            InvalidRecordError: It is another's, lacks a folder, holds something that the tree does
                not, or a joined blob is not as long as its parts.
        """
        fields = Fields(cbor.decode(data))
        fields.version(VERSION)
        named = Digest(fields.take("tree", bytes))
        records = fields.records("trees", _tree)
        joins = dict(fields.records("joins", _join))
        packs = fields.records("packs", _pair)
        fields.done()
        made = cls(tree=named, trees={one.digest: one for one in records}, joins=joins, packs=packs)
        if named != tree:
            raise InvalidRecordError("another tree's", expected=str(tree), actual=str(named))
        made._check(data)
        return made

    def _check(self, data: bytes) -> None:
        try:
            reached = closure([self.tree], lambda one: subfolders(self.trees[one]))
        except KeyError as error:
            raise InvalidRecordError("lacks a folder", actual=str(error.args[0])) from None
        if set(reached) != set(self.trees):
            raise InvalidRecordError("holds folders that are not in the tree")
        blobs = self.blobs()
        for b3, parts in self.joins.items():
            if blobs.get(b3) != sum(size for _, size in parts):
                raise InvalidRecordError("a joined blob of another size", actual=str(b3))
        small = [size for size in self.leaves().values() if is_small(size)]
        room = sum(small) + ENTRY_BYTES * len(small) + COUNT_BYTES * len(self.packs)
        if len(self.packs) > len(small) or sum(size for _, size in self.packs) > room:
            raise InvalidRecordError("packs that are larger than what they may hold")
        if self.encode() != data:
            raise InvalidRecordError("not spelled or sorted as it must be")


def is_small(size_bytes: int) -> bool:
    """Whether a blob may lie in a pack."""
    return size_bytes <= MAX_BLOB_BYTES


def subfolders(tree: Tree) -> list[Digest]:
    """The trees that a tree names."""
    return [node.tree for _, node in tree.entries if isinstance(node, Folder)]


def _pairs(parts: Iterable[tuple[Digest, int]]) -> list[object]:
    return [[b3.raw, size] for b3, size in parts]


def _tree(value: object) -> Tree:
    if type(value) is not bytes:
        raise InvalidRecordError("a tree's record is bytes")
    return Tree.decode(value)


def _join(value: object) -> tuple[Digest, Parts]:
    match value:
        case [bytes(raw), [_, *_] as parts]:
            return Digest(raw), tuple(map(_pair, parts))
        case _:
            raise InvalidRecordError("a joined blob is a digest and its parts")


def _pair(value: object) -> tuple[Digest, int]:
    match value:
        case [bytes(raw), int(size)] if type(size) is int and size >= 0:
            return Digest(raw), size
        case _:
            raise InvalidRecordError("not a digest and a size")
