"""Packs: what they hold, in which order, and what is not packed."""

from dataclasses import replace

import pytest

from kolm_build.core.digest import Digest
from kolm_build.core.kolmpack import MAGIC, PackKind, Part, pack_id, prefix
from kolm_build.errors import (
    CorruptObjectError,
    MissingObjectError,
    NotReproducibleError,
)
from tests.store.builders import blob_path, damage, derivation, make_folder
from tests.store.packing import (
    BIG,
    head_of,
    objects_of,
    take,
    write_pack,
)


def test_the_file_is_prefix_head_and_objects(pack):
    """PACK-1, PACK-2."""
    data, head, objects = pack.read_bytes(), head_of(pack), objects_of(pack)
    encoded = head.encode()
    assert data == prefix(encoded) + encoded + b"".join(objects.values())
    assert data.startswith(MAGIC + len(encoded).to_bytes(8, "little") + pack_id(encoded).raw)


def test_objects_stand_in_order_of_kind_and_digest(pack):
    """PACK-4."""
    rows = [one[:2] for one in head_of(pack).objects]
    assert rows == sorted(set(rows))
    assert rows[0][0] is PackKind.DERIVATION
    assert rows[-1][0] is PackKind.BLOB


def test_the_same_delivery_is_the_same_file(store, wanted, pack, place):
    """PACK-3."""
    write_pack(store, wanted, place / "again.kolmpack")
    assert (place / "again.kolmpack").read_bytes() == pack.read_bytes()


def test_what_was_taken_in_goes_out_again_byte_for_byte(other, wanted, pack, place):
    """PACK-3."""
    take(other, pack, accept_claims=True)
    write_pack(other, wanted, place / "again.kolmpack")
    assert (place / "again.kolmpack").read_bytes() == pack.read_bytes()


def test_the_sizes_of_the_parts_add_up_to_the_file(store, wanted, pack):
    packing = store.plan_pack(wanted)
    total = sum(share.size_bytes for share in packing.shares.values())
    head = packing.head.encode()
    assert total + len(prefix(head)) + len(head) == pack.stat().st_size
    assert sum(share.objects for share in packing.shares.values()) == len(packing.head.objects)
    assert packing.shares[Part.DERIVATIONS].objects == 2
    assert packing.shares[Part.CLAIMS].objects == 2
    assert packing.shares[Part.LOGS].objects == 1


def test_a_file_in_parts_travels_in_parts(pack):
    """PACK-6."""
    kinds = [one.kind for one in head_of(pack).objects]
    assert kinds.count(PackKind.JOIN) == 1


def test_an_output_that_was_never_built_is_not_packed(store, wanted, place):
    """PACK-8."""
    fresh = derivation("fresh")
    store.put_derivation(fresh)
    output = next(iter(wanted.outputs.values()))
    target = {"fresh": replace(output, derivation=fresh.digest)}
    with pytest.raises(MissingObjectError, match="never built"):
        store.plan_pack(replace(wanted, outputs=target))


def test_claims_that_disagree_are_not_packed(store, wanted, place):
    """PACK-9."""
    claims = store.plan_pack(wanted).head.targets
    resolved = store._index.select("select resolved from claim where content = ?",
                                   (claims[0].content.raw,))  # fmt: skip
    other = store.ingest(make_folder(place / "otherwise", {"answer.txt": b"43"}))
    from kolm_build.core.realisation import Realisation

    fact = Realisation(resolved=Digest(resolved[0][0]), output="out", content=other)
    store.add_realisation(fact, derivation=claims[0].derivation, circumstances={})
    with pytest.raises(NotReproducibleError):
        store.plan_pack(wanted)


def test_a_damaged_object_does_not_leave_the_store(store, wanted, place):
    packing = store.plan_pack(wanted)
    damage(blob_path(store, Digest.of_blob(BIG)), BIG[:-1] + b"?")
    with pytest.raises(CorruptObjectError), (place / "y").open("wb") as file:
        store.write_pack(packing, file.write)
