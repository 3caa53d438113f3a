"""Packs that are taken in: what is there then, what is believed, and what a kill leaves."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from kolm_build.core.derivation import ContentInput
from kolm_build.core.digest import Digest
from kolm_build.core.kolmpack import Part, pack_id
from kolm_build.errors import (
    MissingObjectError,
    NoSpaceError,
    PackError,
    StoreError,
)
from kolm_build.store import unpacker
from kolm_build.store.claims import StoredRealisation
from kolm_build.store.local import LocalStore
from kolm_build.store.packfile import PackFile, read_records
from kolm_build.store.unpacker import check_pack
from tests.store.builders import damage, derivation, make_folder, read_folder
from tests.store.packing import (
    BIG,
    head_of,
    refused,
    snapshot,
    take,
    write_pack,
)


def test_everything_is_there_and_sound_after_an_import(other, pack):
    """PACK-7, PACK-12."""
    taken = take(other, pack, accept_claims=True)
    assert other.fsck(deep=True).is_clean
    for target in head_of(pack).targets:
        assert other.has_tree(target.content)
        assert other.has_derivation(target.derivation)
    assert taken.claims == 2
    assert taken.claims_left == 0


def test_all_that_a_derivation_names_is_there_after_an_import(store, wanted, other, place):
    """PACK-7, told without the walk that writer and reader share."""
    path = place / "y.kolmpack"
    write_pack(store, replace(wanted, without_outputs=True), path)
    take(other, path)
    derivations = [other.derivation(one) for one in other.derivations()]
    assert sorted(one.name for one in derivations) == ["first", "second"]
    for made in derivations:
        assert other.has_tree(made.code)
        for _, value in made.inputs:
            if isinstance(value, ContentInput):
                assert other.has_tree(value.content)
    assert other.has_tree(wanted.project)


def test_what_was_fetched_travels_even_without_outputs(store, wanted, other, place):
    """PACK-7, PACK-8."""
    fetched = store.ingest(make_folder(place / "fetched", {"weights.bin": BIG + b"!"}))
    (output,) = wanted.outputs.values()
    fetch = replace(
        derivation("fetch"), code=store.derivation(output.derivation).code,
        outputs=(("out", fetched),),
    )  # fmt: skip
    above = replace(
        derivation("above", {"w": replace(output, derivation=fetch.digest)}), code=fetch.code
    )
    for made in (fetch, above):
        store.put_derivation(made)
    outputs = {"above": replace(output, derivation=above.digest)}
    packing = write_pack(
        store, replace(wanted, outputs=outputs, without_outputs=True), place / "y.kolmpack"
    )
    assert packing.shares[Part.FETCHED].objects == 2
    take(other, place / "y.kolmpack")
    assert other.has_tree(fetched)


def test_restored_outputs_are_what_they_were(store, other, pack, place):
    (target,) = head_of(pack).targets
    take(other, pack)
    store.materialise(target.content, place / "before")
    other.materialise(target.content, place / "after")
    assert read_folder(place / "before") == read_folder(place / "after")


def test_claims_are_not_believed_unless_asked_for(other, pack):
    """PACK-16."""
    taken = take(other, pack)
    assert (taken.claims, taken.claims_left) == (0, 2)
    assert other._index.select("select count(*) from claim") == [(0,)]
    assert take(other, pack, accept_claims=True).claims == 2


def claims_of(store):
    rows = store._index.select("select resolved, output from claim group by resolved, output")
    return [one for raw, output in rows for one in store.realisations(Digest(raw), output)]


def test_claims_that_came_are_marked_for_good(other, pack):
    """STORE-32."""
    root = take(other, pack, accept_claims=True).root
    marked = claims_of(other)
    assert [claim.is_delivered for claim in marked] == [True, True]
    other.remove_root(root)
    other.collect(dry_run=False)
    other.close()
    LocalStore.rebuild_index(other.root)
    with LocalStore.open(other.root) as again:
        assert claims_of(again) == marked


def test_claims_of_this_store_are_not_marked_by_its_own_pack(store, pack):
    """STORE-32."""
    before = claims_of(store)
    take(store, pack, accept_claims=True)
    assert claims_of(store) == before
    assert not any(claim.is_delivered for claim in before)


def test_a_marked_claim_does_not_travel(other, wanted, pack, place):
    """STORE-32."""
    take(other, pack, accept_claims=True)
    write_pack(other, wanted, place / "again.kolmpack")
    with PackFile.open(place / "again.kolmpack") as file:
        assert not any(claim.is_delivered for claim in read_records(file).claims.values())


def test_a_pack_with_a_marked_claim_is_refused(store, wanted, other, place, monkeypatch):
    """PACK-16."""
    monkeypatch.setattr(StoredRealisation, "bare", lambda claim: replace(claim, is_delivered=True))
    write_pack(store, wanted, place / "marked.kolmpack")
    monkeypatch.undo()
    before = snapshot(other)
    with pytest.raises(PackError, match="mark"):
        take(other, place / "marked.kolmpack", accept_claims=True)
    assert snapshot(other) == before


def test_a_claim_without_its_content_is_not_taken(store, wanted, other, place):
    """PACK-16."""
    write_pack(store, replace(wanted, without_outputs=True), place / "y.kolmpack")
    taken = take(other, place / "y.kolmpack", accept_claims=True)
    assert (taken.claims, taken.claims_left) == (0, 2)


def test_the_root_of_an_import_keeps_everything_that_came(other, pack):
    """PACK-17."""
    take(other, pack)
    assert other.collect(dry_run=True).dead == ()
    (root,) = other.roots()
    assert root.name == pack_id(head_of(pack).encode()).hex


def test_importing_twice_is_importing_once(other, pack):
    take(other, pack)
    before = snapshot(other)
    assert take(other, pack).new_objects == 0
    assert snapshot(other) == before


def test_without_outputs_what_was_built_stays_at_home(store, wanted, other, place):
    """PACK-8."""
    path = place / "y.kolmpack"
    packing = write_pack(store, replace(wanted, without_outputs=True), path)
    assert packing.shares[Part.OUTPUTS].objects == 0
    assert len(packing.head.left_out) == 2
    take(other, path)
    assert other.fsck(deep=True).is_clean
    assert not other.has_trees(packing.head.left_out)


def test_a_thin_pack_needs_what_it_was_made_against(store, wanted, other, place):
    """PACK-11, PACK-15, PACK-17."""
    first, second = place / "first", place / "second"
    write_pack(store, replace(wanted, without_outputs=True), first)
    have = {one[:2] for one in head_of(first).objects}
    thin = write_pack(store, wanted, second, have=lambda kind, digest: (kind, digest) in have)
    assert second.stat().st_size < 100_000 < first.stat().st_size
    assert {one.size_bytes for one in thin.head.needs} >= {len(BIG)}
    error = refused(other, second, MissingObjectError)
    assert "earlier" not in str(error)
    assert "import the delivery" in str(error)
    take(other, first)
    take(other, second)
    assert other.fsck(deep=True).is_clean
    assert other.collect(dry_run=True).dead == ()
    (target,) = thin.head.targets
    assert other.has_tree(target.content)


def test_a_check_reads_everything_and_needs_no_store(pack):
    seen = []
    with PackFile.open(pack) as file:
        checked = check_pack(file, seen.append)
        assert seen[-1] == file.head.size_bytes
    assert seen == sorted(seen)
    assert checked.shares[Part.OUTPUTS].objects > 0


def test_a_pack_that_does_not_fit_is_refused_before_anything_is_written(other, pack, monkeypatch):
    """PACK-19."""
    full = os.statvfs_result((4096, 4096, 100, 10, 10, 100, 100, 100, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    refused(other, pack, NoSpaceError)


# Going on after a kill

_KILLED = """
import os, signal, sys
from pathlib import Path
from kolm_build.store import unpacker
from kolm_build.store.local import LocalStore
from kolm_build.store.packfile import PackFile, read_records
copied = unpacker.Unpacker._copied
def die(self, entry, place):
    if len(os.listdir(os.path.dirname(place))) > int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return copied(self, entry, place)
unpacker.Unpacker._copied = die
with LocalStore.open(Path(sys.argv[1])) as store, PackFile.open(Path(sys.argv[2])) as file:
    store.take_pack(file)
"""


@pytest.fixture
def large(store, wanted, place):
    """A pack with four large blobs."""
    files = {f"{number}.bin": BIG + bytes([number]) for number in range(3)}
    tree = store.ingest(make_folder(place / "large", files))
    path = place / "large.kolmpack"
    write_pack(store, replace(wanted, project=tree), path)
    return path


def killed(store, path, after):
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, str(store.root), str(path), str(after)], check=False
    )
    assert done.returncode == -9


def test_a_killed_import_leaves_nothing_visible_and_goes_on_where_it_stopped(other, large):
    """PACK-12, PACK-14."""
    rows = "select count(*) from object"
    killed(other, large, 2)
    assert other._index.select(rows) == [(0,)]
    taken = take(other, large)
    assert taken.resumed_bytes >= 2 * len(BIG)
    assert other.fsck(deep=True).is_clean
    assert other.collect(dry_run=False).dead == ()
    assert [path.name for path in (other.root / "tmp").iterdir()] == [other._session.name]


def test_what_a_killed_import_left_is_hashed_before_it_is_used(other, large):
    """PACK-14."""
    killed(other, large, 2)
    (folder,) = (other.root / "tmp").glob("import-*")
    for left in folder.iterdir():
        if left.name != "lock":
            damage(left, b"other bytes")
    assert take(other, large).resumed_bytes == 0
    assert other.fsck(deep=True).is_clean


def test_the_collector_sweeps_what_a_killed_import_left(other, large):
    killed(other, large, 2)
    other.collect(dry_run=False)
    assert list((other.root / "tmp").glob("import-*")) == []


def test_two_imports_of_one_pack_do_not_meet(other, pack):
    pack_of = pack_id(head_of(pack).encode())
    with (
        unpacker._waiting(other._layout, other._index, pack_of),
        pytest.raises(StoreError, match="another process"),
    ):
        take(other, pack)
    take(other, pack)


def test_an_interrupted_import_keeps_what_it_has_and_a_refused_one_does_not(other, large):
    def stop(_done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        take(other, large, on_bytes=stop)
    assert len(list((other.root / "tmp").glob("import-*"))) == 1
    take(other, large)
    assert list((other.root / "tmp").glob("import-*")) == []
