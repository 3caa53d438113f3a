"""A store that was copied by a tool that leaves out empty folders is still a store."""

from pathlib import Path

from kolm_build.store.local import LocalStore


def drop_empty_folders(root: Path) -> None:
    for folder in sorted((path for path in root.rglob("*") if path.is_dir()), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()


def test_missing_empty_folders_are_made_again(tmp_path):
    with LocalStore.open(tmp_path / "store") as store:
        first = store.put_blob(b"first" * 1000)
    drop_empty_folders(tmp_path / "store")
    with LocalStore.open(tmp_path / "store") as store:
        second = store.put_blob(b"second" * 1000)
        assert store.read_blob(first.b3) == b"first" * 1000
        assert store.read_blob(second.b3) == b"second" * 1000
        assert store.fsck().findings == ()


def test_they_may_stay_missing_in_a_store_that_is_only_read(tmp_path):
    with LocalStore.open(tmp_path / "store") as store:
        first = store.put_blob(b"first" * 1000)
    drop_empty_folders(tmp_path / "store")
    with LocalStore.open(tmp_path / "store", read_only=True) as store:
        assert store.read_blob(first.b3) == b"first" * 1000
