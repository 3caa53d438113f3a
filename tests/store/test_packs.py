"""Many small blobs in one file: kept, found damaged, collected, moved."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kolm_build.core.digest import Digest
from kolm_build.core.tree import Folder
from kolm_build.errors import CorruptObjectError, InvalidRecordError, MissingObjectError
from kolm_build.store import pack, write
from kolm_build.store.layout import Kind
from kolm_build.store.local import LocalStore
from kolm_build.store.verify import Trouble
from tests.store.builders import damage, make_folder, read_folder

FILES = {f"keep/k{n}": b"kept %d" % n * 30 for n in range(40)} | {
    f"drop/d{n}": b"dropped %d" % n * 60 for n in range(80)
}


@pytest.fixture
def folder(place: Path) -> Path:
    return make_folder(place / "in", FILES)


@pytest.fixture
def tree(store: LocalStore, folder: Path) -> Digest:
    return store.ingest(folder)


def _files(store: LocalStore) -> list[Path]:
    return sorted(path for path in (store.root / "cas").rglob("*") if path.is_file())


def _sub(store: LocalStore, tree: Digest, name: str) -> Digest:
    node = store.tree(tree).get(name)
    assert isinstance(node, Folder)
    return node.tree


@given(blobs=st.lists(st.binary(max_size=50), max_size=8))
def test_a_packs_table_names_its_blobs(blobs: list[bytes]) -> None:
    """STORE-29."""
    data = pack.encode([(Digest.of_blob(blob), blob) for blob in blobs])
    slices = pack.decode(data)
    assert [data[one.offset : one.offset + one.size_bytes] for one in slices] == blobs
    assert [one.b3 for one in slices] == [Digest.of_blob(blob) for blob in blobs]


@pytest.mark.parametrize("data", [b"", b"short", b"\xff" * 100, b"x" + bytes(8)])
def test_what_is_no_pack_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidRecordError):
        pack.decode(data)


def test_many_small_files_become_one(store: LocalStore, place: Path, tree: Digest) -> None:
    """STORE-29."""
    (path,) = _files(store)
    assert path.suffix == ".pack"
    assert path.stem == Digest.of_blob(path.read_bytes()).hex
    store.materialise(tree, place / "out")
    assert read_folder(place / "out") == FILES
    assert store.fsck(deep=True).is_clean
    assert store.ingest(place / "in") == tree
    assert _files(store) == [path]


def test_a_packed_blob_is_not_written_again(store: LocalStore, tree: Digest) -> None:
    """STORE-6."""
    before = _files(store)
    store.put_blob(FILES["keep/k1"])
    assert _files(store) == before


def _delete(path: Path) -> None:
    path.unlink()


def _truncate(path: Path) -> None:
    damage(path, path.read_bytes()[:-1])


def _flip(path: Path) -> None:
    data = path.read_bytes()
    damage(path, b"X" + data[1:])


@pytest.mark.parametrize("harm", [_delete, _truncate, _flip])
@pytest.mark.parametrize("helped", [False, True])
def test_a_damaged_pack_is_given_up_for_what_is_sound(
    store: LocalStore, place: Path, tree: Digest, harm: Callable[[Path], None], *, helped: bool
) -> None:
    """STORE-14, STORE-25, STORE-26."""
    (path,) = _files(store)
    harm(path)
    (finding,) = store.fsck().findings
    assert finding.path == str(path)
    if harm is not _truncate:  # which cuts the table, not a blob
        with pytest.raises((CorruptObjectError, MissingObjectError)) as caught:
            store.materialise(tree, place / "out")
        assert caught.value.file == str(path)
    every = {Digest.of_blob(data): data for data in FILES.values()}
    store.fsck(repair=True, substitute=(lambda _, b3: every.get(b3)) if helped else None)
    assert store.fsck(deep=True).is_clean
    assert not path.exists()
    assert store.has_tree(tree) == (helped or harm is _truncate)
    lost = {"_delete": 120, "_truncate": 0, "_flip": 1}[harm.__name__]
    assert len(_files(store)) == (120 if helped else 120 - lost)
    assert store.ingest(place / "in") == tree
    store.materialise(tree, place / "out")
    assert store.fsck(deep=True).is_clean


def test_two_writers_of_the_same_small_files_agree(
    store: LocalStore, folder: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """STORE-6: the second publishes its pack while the first is about to."""
    flush_data = write.Batch._flush_data
    others: list[Digest] = []

    def overtaken(self: write.Batch) -> None:
        flush_data(self)
        if not others:
            others.append(Digest.of_blob(b""))
            with LocalStore.open(store.root) as other:
                # One file more, so that the packs differ and both are published.
                more = make_folder(place / "more", FILES | {"more": b"more"})
                others.append(other.ingest(more))

    monkeypatch.setattr(write.Batch, "_flush_data", overtaken)
    tree = store.ingest(folder)
    assert len(others) == 2
    assert store.fsck(deep=True).is_clean
    for number, one in enumerate((tree, others[1])):
        store.materialise(one, place / f"out{number}")
    assert read_folder(place / "out0") == read_folder(folder)


def test_a_blob_whose_pack_is_no_object_is_missing(store: LocalStore, tree: Digest) -> None:
    """STORE-25."""
    (path,) = _files(store)
    with store._index.transaction():
        store._index.remove(Kind.PACK, [Digest(bytes.fromhex(path.stem))])
    found = store.fsck().findings
    assert {one.trouble for one in found} == {Trouble.MISSING}
    assert len(found) == len(set(FILES.values()))


def test_a_loose_pack_is_found(store: LocalStore, tree: Digest) -> None:
    (path,) = _files(store)
    path.chmod(0o600)
    assert [one.trouble for one in store.fsck(repair=True).findings] == [Trouble.MODE]
    assert store.fsck().is_clean


def test_a_pack_that_is_mostly_dead_is_written_anew(
    store: LocalStore, place: Path, tree: Digest
) -> None:
    """STORE-30."""
    (old,) = _files(store)
    old_bytes = old.stat().st_size
    keep = _sub(store, tree, "keep")
    store.close()
    with LocalStore.open(store.root) as again:
        again.add_root("keep", trees=[keep])
        reader = again._reader
        (piece,) = reader._pieces(Digest.of_blob(FILES["keep/k7"]))
        again.collect(dry_run=False)
        (new,) = _files(again)
        assert new != old
        assert new.stat().st_size < old_bytes / 2
        assert reader._bytes(piece) == FILES["keep/k7"]  # who looked before still reads
        again.collect(dry_run=False)
        assert _files(again) == [new]
        again.materialise(keep, place / "out")
        assert read_folder(place / "out") == {
            name[5:]: data for name, data in FILES.items() if name.startswith("keep/")
        }
        report = again.fsck(deep=True)
        assert report.is_clean
        assert report.litter == 0
        again.remove_root("keep")
    with LocalStore.open(store.root) as again:
        again.collect(dry_run=False)
        assert _files(again) == []


def test_a_pack_comes_back_with_the_index(store: LocalStore, place: Path, tree: Digest) -> None:
    """STORE-27."""
    rows = store._index.rows()
    store.close()
    (store.root / "db.sqlite").unlink()
    with LocalStore.open(store.root) as again:
        assert again._index.rows() == rows
        again.materialise(tree, place / "out")


def test_an_index_of_another_version_is_made_again(store: LocalStore, tree: Digest) -> None:
    """STORE-27."""
    with store._index.transaction():
        store._index.execute("pragma user_version = 1")
    store.close()
    with LocalStore.open(store.root) as again:
        assert again.has_tree(tree)


def test_an_older_pack_does_not_hide_a_blob_of_its_own(
    store: LocalStore, place: Path, folder: Path
) -> None:
    """STORE-5: a packed blob's litter as a file goes, and the pack stays."""
    tree = store.ingest(folder)
    data = FILES["keep/k1"]
    digest = Digest.of_blob(data)
    stray = store.root / "cas" / digest.hex[:2] / digest.hex
    stray.write_bytes(data)
    assert store.fsck().litter == 1
    store.collect(dry_run=False)
    assert not stray.exists()
    store.materialise(tree, place / "out")


def test_many_blobs_are_read_at_once_and_a_damaged_one_is_refused(store, tmp_path):
    """STORE-14."""
    files = {f"{n:03}": bytes([n]) * (n + 1) for n in range(100)} | {"large": bytes(70_000)}
    tree = store.tree(store.ingest(make_folder(tmp_path / "many", files)))
    wanted = {node.b3: files[name] for name, node in tree.entries}
    reader = store._reader
    assert dict(reader.blobs(list(wanted))) == wanted
    (pack,) = (store.root / "cas").rglob("*.pack")
    damage(pack, b"x" + pack.read_bytes()[1:])
    with pytest.raises(CorruptObjectError, match="bytes changed"):
        dict(reader.blobs(list(wanted)))
    absent = Digest.of_blob(b"absent")
    with pytest.raises(MissingObjectError):
        dict(reader.blobs([absent]))
