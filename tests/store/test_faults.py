"""What is broken is found, named and put right; what fails leaves nothing behind."""

import errno
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from kolm_build.core.digest import Digest
from kolm_build.errors import (
    CorruptObjectError,
    KolmError,
    MissingObjectError,
    NoSpaceError,
    PermissionDeniedError,
    StoreFormatError,
)
from kolm_build.store.layout import Kind
from kolm_build.store.local import LocalStore
from kolm_build.store.verify import Trouble
from tests.store.builders import (
    blob_path,
    damage,
    derivation,
    make_folder,
    realise,
    safetensors,
)

WEIGHTS = safetensors({"t": b"tensor" * 1000, "u": b"u" * 5000})


@pytest.fixture
def tree(store: LocalStore, place: Path) -> Digest:
    files = {"a": b"first", "sub/b": b"second", "w.safetensors": WEIGHTS}
    return store.ingest(make_folder(place / "in", files))


def _delete(path: Path) -> None:
    path.unlink()


def _truncate(path: Path) -> None:
    damage(path, path.read_bytes()[:-1])


def _lengthen(path: Path) -> None:
    damage(path, path.read_bytes() + b"!")


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    damage(path, bytes(data))


BREAKS = pytest.mark.parametrize("harm", [_delete, _truncate, _lengthen, _flip])
OBJECTS = pytest.mark.parametrize("which", ["blob", "part", "join", "tree", "subtree"])


def _victim(store: LocalStore, tree: Digest, which: str) -> Path:
    if which in ("tree", "subtree"):
        sub = store.tree(tree).get("sub")
        digest = tree if which == "tree" else sub.tree
        return store.root / "tree" / digest.hex[:2] / digest.hex
    if which == "join":
        return blob_path(store, Digest.of_blob(WEIGHTS))
    return blob_path(store, Digest.of_blob(b"second" if which == "blob" else b"u" * 5000))


@BREAKS
@OBJECTS
def test_damage_is_found_refused_and_healed(
    store: LocalStore, place: Path, tree: Digest, harm: Callable[[Path], None], which: str
) -> None:
    """STORE-14, STORE-25, STORE-26."""
    victim = _victim(store, tree, which)
    harm(victim)
    report = store.fsck()
    assert [finding.path for finding in report.findings] == [str(victim)]
    with pytest.raises((CorruptObjectError, MissingObjectError)) as caught:
        store.materialise(tree, place / "out")
    assert str(victim) == caught.value.file
    assert not (place / "out").exists()
    repaired = store.fsck(repair=True)
    assert all(finding.repaired for finding in repaired.findings)
    assert store.fsck(deep=True).is_clean
    assert not store.has_tree(tree)
    assert store.ingest(place / "in") == tree
    store.materialise(tree, place / "out")
    assert store.fsck(deep=True).is_clean


@BREAKS
@pytest.mark.parametrize("which", ["blob", "part", "tree"])
def test_a_substituter_puts_bytes_back(
    store: LocalStore, place: Path, tree: Digest, harm: Callable[[Path], None], which: str
) -> None:
    """STORE-26."""
    victim = _victim(store, tree, which)
    right = victim.read_bytes()
    harm(victim)
    asked: list[Digest] = []

    def substitute(_: Kind, digest: Digest) -> bytes:
        asked.append(digest)
        return right

    store.fsck(repair=True, substitute=substitute)
    assert [digest.hex for digest in asked] == [victim.name]
    assert store.has_tree(tree)
    assert store.fsck(deep=True).is_clean
    store.materialise(tree, place / "out")


def test_a_lying_substituter_is_not_believed(store: LocalStore, tree: Digest) -> None:
    """STORE-26."""
    _flip(_victim(store, tree, "blob"))
    store.fsck(repair=True, substitute=lambda _kind, _digest: b"wrong")
    assert not store.has_tree(tree)
    assert store.fsck().is_clean


def test_a_flipped_bit_shows_both_digests(store: LocalStore) -> None:
    blob = store.put_blob(b"right")
    damage(blob_path(store, blob.b3), b"wrong")
    with pytest.raises(CorruptObjectError) as caught:
        store.read_blob(blob.b3)
    assert caught.value.expected == str(blob.b3)
    assert caught.value.actual == str(Digest.of_blob(b"wrong"))


def test_foreign_files_and_modes_are_found(store: LocalStore, tree: Digest) -> None:
    """STORE-25, STORE-26."""
    strangers = [
        store.root / "notes.txt",
        store.root / "cas/notes.txt",
        store.root / "cas/aa/short",
        store.root / "cas/aa" / ("bb" * 32),
        store.root / "drv/notes.txt",
    ]
    for path in strangers:
        path.write_text("?")
    (store.root / "cas/aa" / ("aa" * 32)).symlink_to("/etc/passwd")
    strangers.append(store.root / "cas/aa" / ("aa" * 32))
    loose = _victim(store, tree, "blob")
    loose.chmod(0o644)
    found = {finding.path: finding.trouble for finding in store.fsck().findings}
    assert found == {str(path): Trouble.FOREIGN for path in strangers} | {str(loose): Trouble.MODE}
    store.fsck(repair=True)
    assert store.fsck().is_clean
    assert loose.stat().st_mode & 0o777 == 0o444
    assert store.has_tree(tree)


@BREAKS
def test_damaged_records_are_found(store: LocalStore, tree: Digest, harm: Callable) -> None:
    realise(store, derivation(), tree)
    store.put_log(b"log")
    for folder in ("drv", "real", "log"):
        (path,) = (store.root / folder).iterdir()
        harm(path)
        assert [finding.path for finding in store.fsck(repair=True).findings] == [str(path)]
        assert store.fsck().is_clean
    assert store.contents_of([(derivation().resolved_digest, "out")]) == {}
    assert realise(store, derivation(), tree)


def test_litter_is_not_believed(store: LocalStore, place: Path) -> None:
    """STORE-5: an empty file at the right name, as a power cut may leave it."""
    digest = Digest.of_blob(b"right")
    path = store.root / "cas" / digest.hex[:2] / digest.hex
    path.write_bytes(b"")
    with pytest.raises(MissingObjectError):
        store.read_blob(digest)
    store.put_blob(b"right")
    assert store.read_blob(digest) == b"right"


def test_a_valid_object_is_not_written_again(store: LocalStore) -> None:
    """STORE-6."""
    blob = store.put_blob(b"once")
    before = blob_path(store, blob.b3).stat()
    store.put_blob(b"once")
    assert blob_path(store, blob.b3).stat() == before


def test_two_writers_of_one_object_agree(
    store: LocalStore, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """STORE-6: the second publishes while the first is about to."""
    from kolm_build.store import write

    folder = make_folder(place / "in", {"a": b"1", "b.safetensors": WEIGHTS})
    flush_data = write.Batch._flush_data
    others: list[Digest] = []

    def overtaken(self: write.Batch) -> None:
        flush_data(self)
        if not others:
            others.append(Digest.of_blob(b""))
            with LocalStore.open(store.root) as other:
                others.append(other.ingest(folder))

    monkeypatch.setattr(write.Batch, "_flush_data", overtaken)
    assert store.ingest(folder) == others[1]
    assert store.fsck(deep=True).is_clean
    assert store.fsck().litter == 0
    assert _left_aside(store) == []


def test_a_source_that_changes_is_stored_as_it_was_read(
    store: LocalStore, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """STORE-7."""
    path = place / "big"
    path.write_bytes(b"1" * (9 << 20))
    readv = os.readv

    def and_change(file: int, buffers: list[memoryview]) -> int:
        count = readv(file, buffers)
        with path.open("r+b") as other:
            other.write(b"2" * (9 << 20))
        return count

    monkeypatch.setattr(os, "readv", and_change)
    digest = store.ingest(path)
    monkeypatch.undo()
    assert store.fsck(deep=True).is_clean
    node = store.tree(digest).get("big")
    assert Digest.of_blob(store.read_blob(node.b3)) == node.b3
    assert store.tree_of_path(path) != digest


CALLS = ["open", "write", "fsync", "rename", "mkdir", "syncfs"]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("when", [0, 1, 2, 5, 40])
def test_a_full_disk_leaves_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch, call: str, when: int
) -> None:
    """STORE-8, STORE-28: no space at each call that can say so."""
    many = {f"{number}": b"%d" % number for number in range(50)}
    folder = make_folder(place / "in", many | {"w.safetensors": WEIGHTS})
    with LocalStore.open(place / "store") as store:
        kept = store.put_blob(b"kept").b3
        files = _files(store)
        _fail(monkeypatch, call, when, str(store.root))
        try:
            digest = store.ingest(folder)
        except NoSpaceError:
            digest = None
        monkeypatch.undo()
        if digest is not None:
            assert store.has_tree(digest)
        assert _left_aside(store) == []
        lost = set(_files(store)) - set(files)
        assert store.fsck().litter == (0 if digest else len(lost))
        assert store.fsck(deep=True).is_clean
        assert store.read_blob(kept) == b"kept"
        digest = store.ingest(folder)
        store.materialise(digest, place / "out")
        store.collect(dry_run=False)
        assert store.fsck(deep=True).litter == 0


def _fail(monkeypatch: pytest.MonkeyPatch, call: str, when: int, below: str) -> None:
    """Have the call fail with ENOSPC from its `when`-th time on, for files that are written."""
    module, name = ("kolm_build.store.write", "flush_all") if call == "syncfs" else ("os", call)
    real = getattr(os, call) if module == "os" else None
    count = 0

    def failing(*args: object, **named: object) -> object:
        nonlocal count
        ours = call != "open" or (
            str(args[0]).startswith(f"{below}/tmp") and bool(args[1] & os.O_CREAT)
        )
        if ours:
            count += 1
            if count > when:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args, **named) if real else None

    monkeypatch.setattr(f"{module}.{name}", failing)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
def test_a_really_full_file_system_leaves_nothing(place: Path) -> None:
    """STORE-8, STORE-28."""
    mount = place / "full"
    mount.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(mount)],
        check=False,
        capture_output=True,
    )
    if made.returncode != 0:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        folder = make_folder(place / "in", {f"{n}": os.urandom(300_000) for n in range(20)})
        with LocalStore.open(mount / "store") as store:
            kept = store.put_blob(b"kept").b3
            with pytest.raises(NoSpaceError):
                store.ingest(folder)
            assert _left_aside(store) == []
            assert store.fsck(deep=True).is_clean
            assert store.read_blob(kept) == b"kept"
            store.put_blob(b"x" * 100_000)
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_no_permission_is_said(
    store: LocalStore, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """STORE-28."""

    def denied(*_: object, **__: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", "somewhere")

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(PermissionDeniedError, match="denied") as caught:
        store.put_blob(b"x")
    assert caught.value.file == "somewhere"


def test_a_damaged_index_is_said_and_made_again(
    store: LocalStore, place: Path, tree: Digest
) -> None:
    """STORE-27, STORE-28."""
    key = realise(store, derivation(), tree, host="x")
    store.add_root("keep", trees=[tree])
    store.put_log(b"log")
    rows = _rows(store)
    store.close()
    (store.root / "db.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(StoreFormatError, match="damaged"):
        LocalStore.open(store.root)
    assert LocalStore.rebuild_index(store.root) == len(rows)
    with LocalStore.open(store.root) as again:
        assert _rows(again) == rows
        assert again.contents_of([(key, "out")]) == {(key, "out"): (tree,)}
        assert again.realisations(key, "out")[0].circumstances == {"host": "x"}
        assert [root.name for root in again.roots()] == ["keep"]
        again.collect(dry_run=False)
        assert again.fsck(deep=True).is_clean
        again.materialise(tree, place / "out")


def test_a_missing_index_is_made_again_from_what_holds(store: LocalStore, tree: Digest) -> None:
    """STORE-27: what is damaged gets no row, and nothing above it does."""
    sub = store.tree(tree).get("sub").tree
    _flip(_victim(store, tree, "blob"))
    store.close()
    (store.root / "db.sqlite").unlink()
    with LocalStore.open(store.root) as again:
        assert not again.has_tree(tree)
        assert not again.has_tree(sub)
        assert again.read_blob(Digest.of_blob(WEIGHTS)) == WEIGHTS
        assert again.fsck().is_clean


def test_an_error_of_the_index_is_no_traceback(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def execute(self, *_: object) -> object:
            raise sqlite3.OperationalError("something else")

        def close(self) -> None:
            pass

    monkeypatch.setattr(store._index, "_db", Broken())
    with pytest.raises(KolmError, match="index"):
        store.has_tree(Digest.of_blob(b""))


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
def test_a_store_on_a_read_only_file_system_can_be_read(place: Path) -> None:
    """STORE-2."""
    folder = make_folder(place / "in", {"a": b"1"})
    with LocalStore.open(place / "live") as store:
        digest = store.ingest(folder)
        shutil.copytree(place / "live", place / "store")  # the commit is still in the journal
    assert (place / "store/db.sqlite-wal").stat().st_size
    made = subprocess.run(
        ["mount", "--bind", "-o", "ro", str(place / "store"), str(place / "store")],
        check=False,
        capture_output=True,
    )
    if made.returncode != 0:
        pytest.skip("bind mounts are not possible here")
    try:
        with LocalStore.open(place / "store", read_only=True) as reader:
            assert reader.has_tree(digest)
            reader.materialise(digest, place / "out")
        with pytest.raises(KolmError), LocalStore.open(place / "store") as writer:
            writer.put_blob(b"x")
    finally:
        subprocess.run(["umount", str(place / "store")], check=True)


def _files(store: LocalStore) -> list[str]:
    folders = ("cas", "tree", "drv", "real", "log")
    return [
        str(path) for name in folders for path in (store.root / name).rglob("*") if path.is_file()
    ]


def _left_aside(store: LocalStore) -> list[Path]:
    return [
        path for path in (store.root / "tmp").rglob("*") if path.is_file() and path.name != "lock"
    ]


def _rows(store: LocalStore) -> list[object]:
    return store._index.rows()
