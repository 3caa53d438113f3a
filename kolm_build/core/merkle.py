"""The Merkle tree hash of RFC 6962, section 2.1, with SHA-256: what names a list of rows."""

from __future__ import annotations

from collections.abc import Iterable
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
