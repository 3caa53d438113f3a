"""What goes in comes out: blobs, trees, files, folders, safetensors."""

import os
import socket
from pathlib import Path

import cbor2
import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kolm_build.core.digest import Blob, Digest, Sha256
from kolm_build.core.tree import File, Folder, Link, Tree
from kolm_build.errors import (
    CorruptObjectError,
    InvalidRecordError,
    KolmError,
    MissingObjectError,
    ReadOnlyStoreError,
    StoreError,
    StoreFormatError,
)
from kolm_build.store.local import LocalStore
from tests.store.builders import blob_path, damage, make_folder, read_folder, safetensors

BIG = bytes(range(256)) * 20_000  # larger than what is read at once


def test_a_blob_has_both_digests_and_comes_back(store: LocalStore) -> None:
    blob = store.put_blob(b"hello")
    assert blob == Blob.of(b"hello")
    assert blob.b3.raw == blake3(b"hello").digest()
    assert store.read_blob(blob.b3) == b"hello"


def test_an_absent_object_is_named(store: LocalStore) -> None:
    for ask in (store.read_blob, store.tree, store.derivation, store.read_log):
        with pytest.raises(MissingObjectError) as caught:
            ask(Digest.of_blob(b"nowhere"))
        assert caught.value.expected == str(Digest.of_blob(b"nowhere"))
    assert not store.has_tree(Digest.of_blob(b"nowhere"))


def test_a_file_becomes_a_tree_of_one_entry(store: LocalStore, place: Path) -> None:
    (place / "rows.jsonl").write_bytes(b"{}\n")
    tree = store.tree(store.ingest(place / "rows.jsonl"))
    assert tree == Tree.of([("rows.jsonl", _file(b"{}\n"))])
    renamed = store.tree(store.ingest(place / "rows.jsonl", name="data.jsonl"))
    assert renamed == Tree.of([("data.jsonl", _file(b"{}\n"))])


def test_a_folder_becomes_nested_trees(store: LocalStore, place: Path) -> None:
    folder = make_folder(place / "in", {"a": b"1", "sub/b": BIG, "sub/deep/empty": b""})
    (folder / "a").chmod(0o755)
    (folder / "sub/link").symlink_to("../a")
    (folder / "hollow").mkdir()
    digest = store.ingest(folder)
    tree = store.tree(digest)
    assert tree.get("a") == File(
        b3=Digest.of_blob(b"1"), sha256=Sha256.of_blob(b"1"), size_bytes=1, executable=True
    )
    assert isinstance(tree.get("hollow"), Folder)
    sub = tree.get("sub")
    assert isinstance(sub, Folder)
    assert store.tree(sub.tree).get("b") == _file(BIG)
    assert store.tree(sub.tree).get("link") == Link(target="../a")
    assert store.has_tree(digest)
    assert store.has_tree(sub.tree)


def test_a_restored_folder_is_the_same_and_read_only(store: LocalStore, place: Path) -> None:
    """STORE-15."""
    folder = make_folder(place / "in", {"a": b"1", "sub/b": BIG})
    (folder / "a").chmod(0o755)
    (folder / "sub/link").symlink_to("b")
    digest = store.ingest(folder)
    store.materialise(digest, place / "out")
    assert read_folder(place / "out") == read_folder(folder)
    assert (place / "out/a").stat().st_mode & 0o777 == 0o555
    assert (place / "out/sub/b").stat().st_mode & 0o777 == 0o444
    assert (place / "out/sub/b").stat().st_nlink == 1
    assert store.ingest(place / "out") == digest == store.tree_of_path(place / "out")


def test_an_occupied_place_is_not_overwritten(store: LocalStore, place: Path) -> None:
    digest = store.ingest(make_folder(place / "in", {"a": b"1"}))
    (place / "out").mkdir()
    with pytest.raises(StoreError, match="taken"):
        store.materialise(digest, place / "out")
    assert read_folder(place / "out") == {}


def test_objects_cannot_be_written_whatever_the_umask(place: Path) -> None:
    """STORE-3."""
    folder = make_folder(place / "in", {"a": b"1", "b": BIG})
    before = os.umask(0o077)
    try:
        with LocalStore.open(place / "store") as store:
            store.ingest(folder)
            objects = [path for path in (store.root / "cas").rglob("*") if path.is_file()]
    finally:
        os.umask(before)
    assert len(objects) == 2
    assert {path.stat().st_mode & 0o777 for path in objects} == {0o444}


def test_a_tree_needs_its_children(store: LocalStore) -> None:
    """STORE-9."""
    tree = Tree.of([("a", _file(b"absent"))])
    with pytest.raises(MissingObjectError):
        store.put_tree(tree)
    assert not store.has_tree(tree.digest)
    store.put_blob(b"absent")
    assert store.put_tree(tree) == tree.digest
    outer = Tree.of([("sub", Folder(tree=tree.digest))])
    assert store.has_trees([store.put_tree(outer), tree.digest, Digest.of_blob(b"")]) == {
        outer.digest,
        tree.digest,
    }


def test_what_no_tree_can_hold_is_refused(store: LocalStore, place: Path) -> None:
    """STORE-10."""
    pipe = make_folder(place / "pipe", {"ok": b""})
    os.mkfifo(pipe / "fifo")
    plug = make_folder(place / "plug", {"ok": b""})
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(plug / "socket"))
    climb = make_folder(place / "climb", {"sub/ok": b""})
    (climb / "sub/link").symlink_to("../../store")
    absolute = make_folder(place / "absolute", {"ok": b""})
    (absolute / "link").symlink_to("/etc/passwd")
    latin = make_folder(place / "latin", {"ok": b""})
    (latin / os.fsdecode(b"caf\xe9")).write_bytes(b"")
    twins = make_folder(place / "twins", {"name": b"", "NAME": b""})
    for folder in (pipe, plug, climb, absolute, latin, twins):
        with pytest.raises(InvalidRecordError) as caught:
            store.ingest(folder)
        assert str(folder) in (caught.value.file or "")
    listener.close()
    assert not any(path.is_file() for path in (store.root / "tree").rglob("*"))


def test_a_missing_source_is_the_machines_trouble(store: LocalStore, place: Path) -> None:
    with pytest.raises(KolmError) as caught:
        store.ingest(place / "nothing")
    assert str(place / "nothing") in str(caught.value)


def test_equal_tensors_are_stored_once(store: LocalStore, place: Path) -> None:
    """STORE-11."""
    shared, own = b"s" * 100_000, b"o" * 50_000
    folder = make_folder(
        place / "in",
        {
            "a.safetensors": safetensors({"norm": b"n" * 10, "shared": shared}),
            "b.safetensors": safetensors({"shared": shared, "tail": own}, pad=3),
        },
    )
    digest = store.ingest(folder)
    names = [path for path in (store.root / "cas").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size == 100_000 for path in names) == 1
    assert sum(path.suffix == ".join" for path in names) == 2
    store.materialise(digest, place / "out")
    assert read_folder(place / "out") == read_folder(folder)
    assert store.fsck(deep=True).is_clean
    assert store.usage().disk_bytes < store.usage().logical_bytes


def test_the_record_of_a_joined_blob_is_what_the_spec_says(store: LocalStore, place: Path) -> None:
    """STORE-13, by another implementation."""
    data = safetensors({"t": b"x" * 9000})
    store.ingest(make_folder(place / "in", {"a.safetensors": data}))
    header, tensor = data[:-9000], data[-9000:]
    parts = [[blake3(part).digest(), len(part)] for part in (header, tensor)]
    record = cbor2.dumps({"v": 1, "b3": blake3(data).digest(), "parts": parts}, canonical=True)
    (path,) = (store.root / "cas").rglob("*.join")
    assert path.read_bytes() == record + blake3(record).digest()


def test_odd_safetensors_are_kept_whole(store: LocalStore, place: Path) -> None:
    """STORE-11, STORE-12."""
    good = safetensors({"t": b"x" * 9000})
    folder = make_folder(
        place / "in",
        {
            "tiny.safetensors": safetensors({"t": b"x"}),
            "long.safetensors": good + b"tail",
            "short.safetensors": good[:-1],
            "header.safetensors": b"\xff" * 20,
            "empty.safetensors": b"",
            "seven.safetensors": b"1234567",
            "twice.safetensors": good.replace(b'"shape"', b'"dtype"'),
        },
    )
    digest = store.ingest(folder)
    assert not list((store.root / "cas").rglob("*.join"))
    store.materialise(digest, place / "out")
    assert read_folder(place / "out") == read_folder(folder)


def test_a_tensor_may_itself_be_a_file_in_parts(store: LocalStore, place: Path) -> None:
    inner = safetensors({"t": b"x" * 9000})
    folder = make_folder(place / "in", {"a.safetensors": inner})
    store.ingest(folder)
    make_folder(place / "in", {"b.safetensors": safetensors({"inner": inner})})
    digest = store.ingest(folder)
    store.materialise(digest, place / "out")
    assert read_folder(place / "out") == read_folder(folder)
    assert store.read_blob(Digest.of_blob(inner)) == inner
    store.close()
    (store.root / "db.sqlite").unlink()
    with LocalStore.open(store.root) as again:
        assert again.has_tree(digest)


@settings(
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    files=st.dictionaries(
        st.sampled_from(["a", "b.safetensors", "c/d", "c/e/f", "ü", "x y"]),
        st.one_of(
            st.binary(max_size=200),
            st.dictionaries(
                st.sampled_from(["p", "q", "r", "s"]),
                st.sampled_from([b"", b"1", b"2" * 5000, b"3" * 4096, b"4" * 4095]),
            ).map(safetensors),
        ),
    )
)
def test_restoring_inverts_ingesting(
    store: LocalStore, place: Path, files: dict[str, bytes]
) -> None:
    """STORE-12: for every folder, safetensors or not."""
    case = place / os.urandom(6).hex()
    folder = make_folder(case / "in", files)
    folder.mkdir(parents=True, exist_ok=True)
    digest = store.ingest(folder)
    store.materialise(digest, case / "out")
    assert read_folder(case / "out") == files
    assert store.tree_of_path(case / "out") == digest
    assert store.fsck(deep=True).is_clean


def test_a_moved_store_works_the_same(store: LocalStore, place: Path) -> None:
    """STORE-2."""
    digest = store.ingest(make_folder(place / "in", {"a": b"1"}))
    store.close()
    (place / "store").rename(place / "elsewhere")
    with LocalStore.open(place / "elsewhere") as moved:
        assert moved.has_tree(digest)
        assert moved.fsck().is_clean


def test_a_read_only_store_reads_and_refuses_writes(store: LocalStore, place: Path) -> None:
    """STORE-2, STORE-28."""
    folder = make_folder(place / "in", {"a": b"1"})
    digest = store.ingest(folder)
    with LocalStore.open(store.root, read_only=True) as reader:
        assert reader.has_tree(digest)
        assert reader.tree_of_path(folder) == digest
        reader.materialise(digest, place / "out")
        assert reader.fsck().is_clean
        for write in (
            lambda: reader.put_blob(b""),
            lambda: reader.ingest(folder),
            lambda: reader.collect(dry_run=False),
            lambda: reader.remove_root("x"),
            lambda: reader.memo_put(digest, b""),
            lambda: reader.fsck(repair=True),
        ):
            with pytest.raises(ReadOnlyStoreError):
                write()


def test_a_foreign_folder_is_refused_untouched(place: Path) -> None:
    """STORE-1."""
    folder = make_folder(place / "home", {"thesis.tex": b"precious"})
    with pytest.raises(StoreFormatError, match="no store"):
        LocalStore.open(folder)
    assert read_folder(folder) == {"thesis.tex": b"precious"}
    with pytest.raises(StoreFormatError):
        LocalStore.open(folder / "thesis.tex")
    with pytest.raises(ReadOnlyStoreError):
        LocalStore.open(place / "nothing", read_only=True)
    assert not (place / "nothing").exists()


def test_another_version_is_refused(store: LocalStore) -> None:
    """STORE-1."""
    store.close()
    (store.root / "format").chmod(0o644)
    (store.root / "format").write_text("kolm-store 2\n")
    with pytest.raises(StoreFormatError) as caught:
        LocalStore.open(store.root)
    assert caught.value.actual == repr("kolm-store 2\n")


def test_a_half_made_store_is_finished(place: Path) -> None:
    with LocalStore.open(place / "store"):
        pass
    (place / "store/format").unlink()
    with LocalStore.open(place / "store") as store:
        assert store.fsck().is_clean


def test_unchanged_files_are_not_read_again(
    store: LocalStore, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """STORE-17: an old file's digest comes from the cache, even if it cannot be read."""
    path = place / "old"
    path.write_bytes(b"1" * 100)
    monkeypatch.setattr("kolm_build.store.statcache.AT_REST_NS", -(10**18))
    digest = store.tree_of_path(path)
    monkeypatch.setattr("kolm_build.store.ingest._read", lambda *_: pytest.fail("read again"))
    assert store.tree_of_path(path) == digest


def test_a_fresh_file_is_read_again(store: LocalStore, place: Path) -> None:
    """STORE-17: a change in the same tick and of the same size does not go unseen."""
    path = place / "fresh"
    path.write_bytes(b"1")
    stat = path.stat()
    first = store.tree_of_path(path)
    path.write_bytes(b"2")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert store.tree_of_path(path) != first


def test_the_memo_remembers(store: LocalStore) -> None:
    key = Digest.of_blob(b"key")
    assert store.memo_get(key) is None
    store.memo_put(key, b"1")
    store.memo_put(key, b"2")
    assert store.memo_get(key) == b"2"


def test_scratch_is_private_and_goes(store: LocalStore) -> None:
    with store.scratch() as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        make_folder(folder, {"sub/a": b""})
        (folder / "sub").chmod(0o500)
    assert not folder.exists()


def test_a_link_at_an_objects_name_is_not_followed(store: LocalStore, place: Path) -> None:
    """STORE-16."""
    blob = store.put_blob(b"right")
    path = blob_path(store, blob.b3)
    (place / "elsewhere").write_bytes(b"right")
    path.unlink()
    path.symlink_to(place / "elsewhere")
    with pytest.raises(KolmError):
        store.read_blob(blob.b3)


def _file(data: bytes) -> File:
    return File(b3=Digest.of_blob(data), sha256=Sha256.of_blob(data), size_bytes=len(data))


def test_one_file_of_a_tree_is_restored_checked_or_not_at_all(
    store: LocalStore, place: Path
) -> None:
    tree = store.ingest(make_folder(place / "in", {"a": b"1", "sub/b": BIG}))
    store.materialise_file(tree, "a", place / "out")
    assert ((place / "out").read_bytes(), (place / "out").stat().st_mode & 0o777) == (b"1", 0o444)
    for name in ("sub", "nothing"):
        with pytest.raises(MissingObjectError, match="no such file"):
            store.materialise_file(tree, name, place / "other")
    damage(blob_path(store, Digest.of_blob(b"1")), b"2")
    with pytest.raises(CorruptObjectError):
        store.materialise_file(tree, "a", place / "other")
    assert not (place / "other").exists()
