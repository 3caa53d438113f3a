"""Packs: what they hold, how they are taken in, and everything that is refused."""

import os
import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest

from kolm_build.core import cbor
from kolm_build.core.derivation import ContentInput
from kolm_build.core.digest import Blob, Digest, Sha256
from kolm_build.core.kolmpack import MAGIC, MAX_HEAD_BYTES, Entry, PackKind, Part, pack_id, prefix
from kolm_build.core.tree import File, Folder, Tree
from kolm_build.errors import (
    CorruptObjectError,
    InvalidRecordError,
    KolmError,
    MissingObjectError,
    NoSpaceError,
    NotReproducibleError,
    PackDamagedError,
    PackError,
    PackIncompleteError,
    StoreError,
)
from kolm_build.store import unpacker
from kolm_build.store.claims import StoredRealisation
from kolm_build.store.join import Join
from kolm_build.store.local import LocalStore
from kolm_build.store.packfile import PackFile, read_records
from kolm_build.store.unpacker import check_pack
from tests.store.builders import blob_path, damage, derivation, make_folder, read_folder, realise
from tests.store.packing import (
    BIG,
    deliver,
    entry,
    forge,
    head_of,
    objects_of,
    rewrite,
    snapshot,
    write_pack,
)
from tools.hostile_packs import CHANGES, spoilt


@pytest.fixture
def wanted(store, place):
    return deliver(store, place)


@pytest.fixture
def pack(store, wanted, place):
    """A pack of a small delivery."""
    path = place / "x.kolmpack"
    write_pack(store, wanted, path)
    return path


@pytest.fixture
def other(place):
    """The store of somebody else, empty."""
    with LocalStore.open(place / "other") as opened:
        yield opened


def take(store, path, **options):
    with PackFile.open(path) as file:
        return store.take_pack(file, **options)


def refused(store, path, kind=PackError):
    """What `path` is refused with; the store is as it was, and so is a check without a store."""
    before = snapshot(store)
    with pytest.raises(kind) as caught:
        take(store, path)
    assert snapshot(store) == before
    mine = {store._session.name} if store._session else set()
    assert {path.name for path in (store.root / "tmp").iterdir()} == mine
    return caught.value


# Writing


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


# Taking in


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


# Refusing


@pytest.mark.parametrize("change", CHANGES)
def test_a_pack_that_was_tampered_with_is_refused_and_the_store_is_as_it_was(
    other, pack, place, change
):
    """PACK-1, PACK-12, PACK-19."""
    other.put_blob(b"mine")
    whole, random_numbers = pack.read_bytes(), random.Random(change)
    for _ in range(15):
        (place / "bad").write_bytes(spoilt(whole, change, random_numbers))
        refused(other, place / "bad")
        with pytest.raises(PackError), PackFile.open(place / "bad") as file:
            check_pack(file)


def test_a_head_that_was_changed_and_named_anew_is_refused_or_sound(store, pack, place):
    """PACK-19: an attacker can compute digests too."""
    whole, numbers = pack.read_bytes(), random.Random(7)
    head, objects = head_of(pack).encode(), b"".join(objects_of(pack).values())
    assert whole.endswith(objects)
    ended = Counter()
    for turn in range(300):
        changed = bytearray(head)
        for _ in range(numbers.choice((1, 1, 2, 8))):
            changed[numbers.randrange(len(head))] = numbers.randrange(256)
        (place / "bad").write_bytes(prefix(bytes(changed)) + bytes(changed) + objects)
        with LocalStore.open(place / f"other{turn % 3}") as other:
            try:
                take(other, place / "bad")
            except (PackError, MissingObjectError):
                ended["refused"] += 1
            else:
                ended["taken"] += 1
                assert other.fsck(deep=True).is_clean
    assert ended["refused"] > 250


def test_bytes_are_checked_even_where_the_store_has_the_object(other, pack, place):
    """PACK-13."""
    take(other, pack)
    data = bytearray(pack.read_bytes())
    for at in (len(data) - 1, data.index(BIG[:4096]) + 99):
        data[at] ^= 1
        (place / "bad").write_bytes(data)
        refused(other, place / "bad", PackDamagedError)
        data[at] ^= 1


@pytest.mark.parametrize("kind", PackKind)
def test_a_pack_without_one_of_its_objects_is_refused(other, pack, place, kind):
    """PACK-7."""
    for dropped in [one for one in head_of(pack).objects if one.kind is kind]:
        objects = objects_of(pack)
        del objects[dropped]
        if kind is PackKind.LOG:
            continue  # a log that is gone is left out: see the next test
        refused(other, forge(pack, place / "bad", objects))


def test_a_log_that_is_gone_is_left_out(store, other, wanted, pack, place):
    """PACK-7."""
    objects = {one: data for one, data in objects_of(pack).items() if one.kind is not PackKind.LOG}
    take(other, forge(pack, place / "fine", objects))


@pytest.mark.parametrize("kind", PackKind)
def test_a_pack_with_an_object_that_nothing_names_is_refused(other, pack, place, kind):
    """PACK-7."""
    data = {
        PackKind.DERIVATION: derivation("smuggled").encode(),
        PackKind.TREE: Tree.of([]).encode(),
        PackKind.JOIN: Join(b3=Digest.of_blob(b"ab"), parts=((Digest.of_blob(b"ab"), 2),)).encode(),
    }.get(kind, b"smuggled")
    digest = {
        PackKind.DERIVATION: derivation("smuggled").digest,
        PackKind.TREE: Tree.of([]).digest,
        PackKind.JOIN: Digest.of_blob(b"ab"),
    }.get(kind, Digest.of_blob(data))
    refused(other, forge(pack, place / "bad", objects_of(pack) | {entry(kind, digest, data): data}))


@pytest.mark.parametrize(
    "lie",
    [
        {"size_bytes": 3},
        {"size_bytes": 1 << 60},
        {"sha256": Sha256.of_blob(b"other")},
        {"b3": Digest.of_blob(b"other")},
    ],
    ids=lambda lie: next(iter(lie)),
)
def test_a_tree_that_lies_about_a_file_is_refused(other, pack, place, lie):
    """PACK-10."""
    head, objects = head_of(pack), objects_of(pack)
    (old,) = [one for one in objects if one.digest == head.project and one.kind is PackKind.TREE]
    ((name, node),) = Tree.decode(objects.pop(old)).entries
    tree = Tree.of([(name, replace(node, **lie))])
    data = tree.encode()
    forged = forge(
        pack,
        place / "bad",
        objects | {entry(PackKind.TREE, tree.digest, data): data},
        project=tree.digest,
    )
    refused(other, forged, PackIncompleteError)


def test_a_join_that_is_not_what_it_says_is_refused(other, pack, place):
    """PACK-6."""
    objects = objects_of(pack)
    (old,) = [one for one in objects if one.kind is PackKind.JOIN]
    join = Join.decode(objects.pop(old))
    swapped = Join(b3=join.b3, parts=(*join.parts[:-2], join.parts[-1], join.parts[-2])).encode()
    forged = objects | {entry(PackKind.JOIN, join.b3, swapped): swapped}
    refused(other, forge(pack, place / "bad", forged), PackDamagedError)
    honest = Join(b3=Digest.of_blob(b"x"), parts=join.parts).encode()
    refused(
        other, forge(pack, place / "bad", objects | {entry(PackKind.JOIN, join.b3, honest): honest})
    )


@pytest.mark.parametrize(
    "name", ["../up", "/abs", "a/b", "..", "", "a\0b", "back\\slash", "x" * 300, "e\u0301"]
)
def test_a_tree_with_a_name_that_leads_out_is_refused(other, pack, place, name):
    """PACK-19."""
    good = Tree.of([("good", File(b3=Blob.of(b"").b3, sha256=Blob.of(b"").sha256, size_bytes=0))])
    value = good.to_value()
    value["entries"][0][0] = name
    data = (
        cbor.encode(value) if name != "e\u0301" else good.encode().replace(b"dgood", b"ce\xcc\x81")
    )
    from kolm_build.core.digest import RecordKind

    digest = Digest.of_record(data, RecordKind.TREE)
    objects = objects_of(pack) | {entry(PackKind.TREE, digest, data): data}
    assert isinstance(refused(other, forge(pack, place / "bad", objects)), PackError)


@pytest.mark.parametrize("target", ["/etc/passwd", "a/../../../etc", "../../.."])
def test_a_link_that_leads_out_is_refused(other, pack, place, target):
    """PACK-19: refused as a record, or when the tree is restored."""
    from kolm_build.core.digest import RecordKind

    value = {"v": 1, "entries": [["l", {"type": "link", "target": target}]]}
    data = cbor.encode(value)
    digest = Digest.of_record(data, RecordKind.TREE)
    objects = {
        one: body for one, body in objects_of(pack).items() if one.digest != head_of(pack).project
    }
    bad = forge(
        pack,
        place / "bad",
        objects | {entry(PackKind.TREE, digest, data): data},
        project=digest,
    )
    refused(other, bad)


def _with_project(pack, place, added):
    """The pack whose project is the last of the trees `added`, all of them in it."""
    head = head_of(pack)
    objects = {
        one: data
        for one, data in objects_of(pack).items()
        if (one.kind, one.digest) != (PackKind.TREE, head.project)
    }
    for tree in added:
        data = tree.encode()
        objects[entry(PackKind.TREE, tree.digest, data)] = data
    return forge(pack, place / "bad", objects, project=added[-1].digest)


@pytest.mark.parametrize("levels", [40, 250])
def test_a_tree_that_grows_without_bounds_is_refused(other, pack, place, levels):
    """PACK-21: few bytes can describe more files than any disk holds."""
    project = next(
        Tree.decode(data)
        for one, data in objects_of(pack).items()
        if one.digest == head_of(pack).project
    )
    trees = [project]
    for _ in range(levels):
        names = ("a", "b") if levels == 40 else ("a",)
        trees.append(Tree.of([(name, Folder(tree=trees[-1].digest)) for name in names]))
    bad = _with_project(pack, place, trees[1:])
    objects = objects_of(bad)
    data = project.encode()
    objects[entry(PackKind.TREE, project.digest, data)] = data
    error = refused(other, forge(bad, place / "bad", objects))
    assert "too large to unpack" in str(error)


def test_a_file_of_parts_that_grows_without_bounds_is_refused(other, pack, place):
    """PACK-21."""
    big = Blob.of(BIG)
    join = Join(b3=Digest.of_blob(b"never"), parts=((big.b3, len(BIG)),) * 700)
    node = File(b3=join.b3, sha256=Sha256.of_blob(b""), size_bytes=join.size_bytes)
    bad = _with_project(pack, place, [Tree.of([("bomb", node)])])
    objects = {one: data for one, data in objects_of(bad).items() if data != b"name = 'x'\n"} | {
        entry(PackKind.JOIN, join.b3, join.encode()): join.encode()
    }
    error = refused(other, forge(bad, place / "bad", objects))
    assert "far larger than all parts" in str(error)


def test_whoever_takes_a_pack_in_may_refuse_what_it_delivers(other, pack):
    def judge(delivered):
        assert delivered.tree(head_of(pack).project).entries
        raise PackIncompleteError("not wanted here")

    before = snapshot(other)
    with PackFile.open(pack) as file, pytest.raises(PackIncompleteError, match="not wanted"):
        other.take_pack(file, judge=judge)
    assert snapshot(other) == before


def test_a_claim_about_something_else_is_refused(store, other, pack, place):
    """PACK-9."""
    content = store.ingest(make_folder(place / "evil", {"evil": b"evil"}))
    resolved = realise(store, derivation("elsewhere"), content)
    (claim,) = store.realisations(resolved, "out")
    data = claim.encode()
    objects = objects_of(pack) | {entry(PackKind.CLAIM, Digest.of_blob(data), data): data}
    refused(other, forge(pack, place / "bad", objects), PackIncompleteError)


def test_a_second_claim_that_disagrees_is_refused(store, other, pack, place):
    """PACK-9."""
    objects = objects_of(pack)
    old = next(one for one in objects if one.kind is PackKind.CLAIM)
    value = cbor.decode(objects[old])
    value["realisation"]["content"] = b"\7" * 32
    data = cbor.encode(value)
    objects[entry(PackKind.CLAIM, Digest.of_blob(data), data)] = data
    refused(other, forge(pack, place / "bad", objects), KolmError)


def test_a_target_with_another_content_than_claimed_is_refused(other, pack, place):
    """PACK-9."""

    def change(value):
        value["targets"][0]["content"] = b"\7" * 32

    refused(other, rewrite(pack, place / "bad", change), PackIncompleteError)


def _first_row(value, table="objects"):
    return value[table][:41]


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value.update(v=2),
        lambda value: value.update(extra=1),
        lambda value: value.pop("needs"),
        lambda value: value.update(targets=[]),
        lambda value: value.update(name="../x"),
        lambda value: value.update(numerics=["portable-1"]),
        lambda value: value.update(numerics=["quick-1"]),
        lambda value: value.update(objects=value["objects"][:-1]),
        lambda value: value.update(objects=_first_row(value) + value["objects"]),
        lambda value: value.update(objects=value["objects"][41:] + _first_row(value)),
        lambda value: value.update(objects=b"\x09" + value["objects"][1:]),
        lambda value: value.update(needs=_first_row(value)),
        lambda value: value.update(left_out=[b"\1" * 32]),
        lambda value: value.update(left_out=[b"\2" * 32, b"\1" * 32]),
        lambda value: value.update(environments=[[b"\1" * 32, b"\2" * 32]]),
        lambda value: value.update(project=b"\1" * 32),
        lambda value: value["targets"][0].update(output="other"),
        lambda value: value["targets"][0].update(derivation=b"\1" * 32),
        lambda value: value["targets"].append(dict(value["targets"][0])),
    ],
)  # fmt: skip
def test_a_head_that_is_wrong_in_any_way_is_refused(other, pack, place, change):
    """PACK-4, PACK-5, PACK-19."""
    refused(other, rewrite(pack, place / "bad", change))


def test_a_size_that_lies_is_refused_before_anything_is_read(other, pack, place):
    """PACK-5."""
    for size in (0, 1 << 47, (1 << 64) - 1):

        def change(value, size=size):
            value["objects"] = value["objects"][:-8] + size.to_bytes(8, "little")

        refused(other, rewrite(pack, place / "bad", change))


def test_a_head_that_promises_too_much_is_refused_before_it_is_read(other, place):
    """PACK-5."""
    (place / "bad").write_bytes(MAGIC + (MAX_HEAD_BYTES + 1).to_bytes(8, "little") + bytes(32))
    refused(other, place / "bad", PackDamagedError)


def test_records_too_large_to_be_kept_in_mind_are_refused(pack):
    """PACK-5."""
    head = head_of(pack)
    many = tuple(Entry(PackKind.TREE, Digest(bytes([n]) * 32), 64 << 20) for n in range(5))
    with pytest.raises(InvalidRecordError, match="too many records"):
        replace(head, objects=many)
    with pytest.raises(InvalidRecordError, match="too large an object"):
        replace(head, objects=(Entry(PackKind.TREE, Digest(bytes(32)), (64 << 20) + 1),))


@pytest.mark.parametrize("data", [b"", b"PK\3\4", b"kolmpack 2\n" + bytes(60), MAGIC, b"\0" * 99])
def test_what_is_no_pack_is_refused(other, place, data):
    """PACK-19."""
    (place / "bad").write_bytes(data)
    refused(other, place / "bad")


def test_a_folder_or_pipe_is_no_pack(place):
    os.mkfifo(place / "pipe")
    for path in (place, place / "pipe"):
        with pytest.raises(PackError, match="not a regular file"):
            PackFile.open(path)


def test_an_encoding_that_is_not_the_one_is_refused(other, pack, place):
    """PACK-5."""
    head, objects = head_of(pack).encode(), objects_of(pack)
    assert head[0] == 0xA9
    longer = b"\xb8\x09" + head[1:]  # a map of nine, said at length
    (place / "bad").write_bytes(prefix(longer) + longer + b"".join(objects.values()))
    refused(other, place / "bad")


def test_a_missing_subfolder_is_named(other, pack, place):
    """PACK-7, PACK-19."""
    objects = objects_of(pack)
    trees = {one.digest: Tree.decode(data) for one, data in objects.items()
             if one.kind is PackKind.TREE}  # fmt: skip
    below = {node.tree for tree in trees.values() for _, node in tree.entries
             if isinstance(node, Folder)}  # fmt: skip
    (gone,) = below
    del objects[next(one for one in objects if one.digest == gone)]
    error = refused(other, forge(pack, place / "bad", objects), PackIncompleteError)
    assert str(gone) in str(error)
