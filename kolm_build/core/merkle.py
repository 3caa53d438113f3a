"""The Merkle tree hash of RFC 6962, section 2.1, with SHA-256: what names a list of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from hashlib import sha256


def root(leaves: Iterable[bytes]) -> bytes:
    """The tree hash of `leaves`, in their order; 32 bytes."""
    level = [sha256(b"\x00" + leaf).digest() for leaf in leaves]
    if not level:
        return sha256().digest()
    while len(level) > 1:
        level = [_parent(level[at : at + 2]) for at in range(0, len(level), 2)]
    return level[0]


def _parent(pair: list[bytes]) -> bytes:
    """The hash above one or two nodes: a node without a sibling rises as it is."""
    return pair[0] if len(pair) == 1 else sha256(b"\x01" + pair[0] + pair[1]).digest()


class Tree:
    """The tree over a list of leaves, with the hash of any part of it.

    Args:
        leaves: The leaves, in their order.
    """

    def __init__(self, leaves: Iterable[bytes]) -> None:
        self._hashes = [sha256(b"\x00" + leaf).digest() for leaf in leaves]
        self._known: dict[tuple[int, int], bytes] = {}

    def __len__(self) -> int:
        return len(self._hashes)

    def node(self, start: int, end: int) -> bytes:
        """The tree hash of the leaves from `start` to `end`, `end` not among them; 32 bytes."""
        if end - start < 2:
            return self._hashes[start] if end > start else sha256().digest()
        if (start, end) not in self._known:
            middle = start + left_size(end - start)
            pair = [self.node(start, middle), self.node(middle, end)]
            self._known[start, end] = _parent(pair)
        return self._known[start, end]


def left_size(leaves: int) -> int:
    """How many of `leaves` (2 or more) stand on the left below the root."""
    return 1 << (leaves - 1).bit_length() - 1


Node = Callable[[int, int], bytes]
"""Gives the tree hash of a run of leaves: `Tree.node`, or the other end of a wire."""


def first_difference(one: Node, other: Node, leaves: int) -> int | None:
    """The number of the first of `leaves` that differs; None where all are equal.

    Each side is asked for at most ceil(log2(leaves)) + 1 hashes.
    """
    if one(0, leaves) == other(0, leaves):
        return None
    start, end = 0, leaves
    while end - start > 1:
        middle = start + left_size(end - start)
        if one(start, middle) == other(start, middle):
            start = middle
        else:
            end = middle
    return start
