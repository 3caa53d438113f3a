"""Packs that are refused: tampered with, forged, or larger than they say."""

import os
import random
from collections import Counter
from dataclasses import replace

import pytest

from kolm_build.core import cbor
from kolm_build.core.digest import Blob, Digest, Sha256
from kolm_build.core.kolmpack import MAGIC, MAX_HEAD_BYTES, Entry, PackKind, prefix
from kolm_build.core.tree import File, Folder, Tree
from kolm_build.errors import (
    InvalidRecordError,
    KolmError,
    MissingObjectError,
    PackDamagedError,
    PackError,
    PackIncompleteError,
)
from kolm_build.store.join import Join
from kolm_build.store.local import LocalStore
from kolm_build.store.packfile import PackFile
from kolm_build.store.unpacker import check_pack
from tests.store.builders import derivation, make_folder, realise
from tests.store.packing import (
    BIG,
    entry,
    forge,
    head_of,
    objects_of,
    refused,
    rewrite,
    snapshot,
    take,
)
from tools.hostile_packs import CHANGES, spoilt


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
