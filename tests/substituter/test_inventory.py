"""Inventories: read strictly, believed in nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kolm_build.core.digest import Blob, Digest
from kolm_build.core.tree import File, Folder, Tree
from kolm_build.errors import InvalidRecordError, KolmError
from kolm_build.store.inventory import Inventory

BLOBS = [Blob.of(bytes([n]) * n) for n in range(1, 60)]


def file(blob: Blob) -> File:
    return File(b3=blob.b3, sha256=blob.sha256, size_bytes=blob.size_bytes)


BELOW = Tree.of([(f"{n}", file(blob)) for n, blob in enumerate(BLOBS[:40])])
ABOVE = Tree.of([("below", Folder(tree=BELOW.digest)), ("file", file(BLOBS[50]))])
PARTS = ((BLOBS[0].b3, 1), (BLOBS[49].b3, 50))
WHOLE = Inventory(
    tree=ABOVE.digest,
    trees={ABOVE.digest: ABOVE, BELOW.digest: BELOW},
    joins={BLOBS[50].b3: PARTS},
    packs=((Digest.of_blob(b"pack"), 900),),
)


def test_an_inventory_is_read_back_as_it_was():
    """SUB-2."""
    data = WHOLE.encode()
    assert Inventory.decode(data, ABOVE.digest) == WHOLE
    assert set(WHOLE.leaves()) == {blob.b3 for blob in BLOBS[:40]} | {BLOBS[49].b3}
    assert [tree.digest for tree in WHOLE.bottom_up()] == [BELOW.digest, ABOVE.digest]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"trees": {ABOVE.digest: ABOVE}}, "lacks a folder"),
        ({"trees": {**WHOLE.trees, Tree(entries=()).digest: Tree(entries=())}}, "not in the tree"),
        ({"tree": BELOW.digest}, "another tree's"),
        ({"joins": {BLOBS[50].b3: PARTS[:1]}}, "another size"),
        ({"joins": {Digest.of_blob(b"x"): PARTS}}, "another size"),
        ({"packs": ((Digest.of_blob(b"pack"), 1 << 20),)}, "larger than what they may hold"),
        ({"packs": tuple((Digest.of_blob(bytes([n])), 1) for n in range(60))}, "larger than"),
    ],
)
def test_what_the_tree_does_not_say_is_refused(change, reason):
    """SUB-2, SUB-3."""
    with pytest.raises(InvalidRecordError, match=reason):
        Inventory.decode(replace(WHOLE, **change).encode(), ABOVE.digest)


@given(st.data())
def test_no_byte_of_an_inventory_can_change_unnoticed(data):
    """SUB-2. A changed pack or part is another inventory in order: it is not proved here."""
    encoded = bytearray(WHOLE.encode())
    at = data.draw(st.integers(0, len(encoded) - 1))
    encoded[at] ^= data.draw(st.integers(1, 255))
    try:
        found = Inventory.decode(bytes(encoded), ABOVE.digest)
    except KolmError:
        return
    assert found.trees == WHOLE.trees
    assert found.encode() == bytes(encoded)
