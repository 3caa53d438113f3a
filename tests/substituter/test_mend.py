"""A damaged store mends itself from substituters, and takes nothing there on trust."""

from __future__ import annotations

import pytest

from kolm_build.core.digest import Digest
from kolm_build.store.local import LocalStore
from kolm_build.store.remote.folder import FolderPlace
from kolm_build.store.remote.layout import blob_path as remote_path
from kolm_build.store.remote.layout import derivation_path, log_path, tree_path
from kolm_build.store.remote.mend import mend
from kolm_build.store.remote.place import Bytes
from tests.store.builders import blob_path, damage, derivation, make_folder, read_folder
from tests.substituter.copying import model_folder, noise, publish, substitutes

LARGE = noise(12 << 20, 5)
PART = noise(300_000, 2)


@pytest.fixture
def cache(place):
    return FolderPlace(str(place / "cache"))


@pytest.fixture
def tree(store, place, cache):
    """The tree of a model that a substituter has too."""
    tree = store.ingest(model_folder(place / "model"))
    publish(store, cache, tree)
    return tree


def files_of(store):
    """Every file that may be damaged: blobs, parts, joins, packs, records of folders."""
    return sorted(path for kind in ("cas", "tree") for path in (store.root / kind).glob("*/*"))


def mended(store: LocalStore, *places):
    with substitutes(store, *places) as (those, troubles):
        made = mend(store, those, deep=True, on_bytes=lambda _done, _total: None)
    return made, [error for _, error in troubles]


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    damage(path, bytes(data))


@pytest.mark.parametrize("harm", [flip, lambda path: path.unlink()])
def test_whatever_is_damaged_comes_back(store, place, cache, tree, harm):
    """STORE-26, STORE-33."""
    for path in files_of(store):
        harm(path)
    made, troubles = mended(store, cache)
    assert made.lost == ()
    assert troubles == []
    assert all(finding.repaired for finding in made.report.findings)
    assert store.fsck(deep=True).is_clean
    store.materialise(tree, place / "out")
    assert read_folder(place / "out") == read_folder(place / "model")


@pytest.mark.parametrize("data", [LARGE, PART])
def test_what_is_sound_is_not_fetched_again(store, cache, tree, data):
    """STORE-33, SUB-10."""
    flip(blob_path(store, Digest.of_blob(data)))
    made, _ = mended(store, cache)
    assert made.came_bytes == len(data)
    assert {finding.repaired for finding in made.report.findings} == {"put back"}
    assert store.has_tree(tree)


@pytest.mark.parametrize("lie", [noise(12 << 20, 6), LARGE[:-1], LARGE + b"!"])
def test_a_substituter_that_gives_other_bytes_is_not_believed(store, cache, tree, lie):
    """STORE-33, SUB-7."""
    b3 = Digest.of_blob(LARGE)
    cache.write(remote_path(b3), Bytes(lie))
    flip(blob_path(store, b3))
    made, troubles = mended(store, cache)
    assert made.lost == (tree,)
    assert troubles
    assert not store.has_tree(tree)
    assert store.fsck(deep=True).is_clean
    assert not blob_path(store, b3).exists()


def test_what_one_substituter_lacks_the_next_one_gives(store, place, cache, tree):
    """STORE-33, SUB-12."""
    empty = FolderPlace(str(place / "empty"))
    publish(store, empty)
    flip(blob_path(store, Digest.of_blob(LARGE)))
    made, _ = mended(store, empty, cache)
    assert made.lost == ()
    assert store.fsck(deep=True).is_clean


def test_what_nobody_has_stays_invalid(store, place, cache, tree):
    """STORE-26, STORE-33."""
    alone = store.ingest(make_folder(place / "alone", {"f": noise(100_000, 3)}))
    flip(blob_path(store, Digest.of_blob(noise(100_000, 3))))
    made, _ = mended(store, cache)
    assert made.lost == (alone,)
    assert store.has_tree(tree)
    assert store.fsck(deep=True).is_clean


@pytest.mark.parametrize("is_right", [True, False])
def test_derivations_and_logs_are_asked_for_by_name(store, cache, tree, is_right):
    """STORE-26, STORE-33."""
    made = derivation()
    store.put_derivation(made)
    log = store.put_log(b"line\n")
    end = b"" if is_right else b"!"
    cache.write(derivation_path(made.digest), Bytes(made.encode() + end))
    cache.write(log_path(log), Bytes(b"line\n" + end))
    for path in (store.root / "drv" / made.digest.hex, store.root / "log" / log.hex):
        flip(path)
    mended(store, cache)
    assert store.has_derivation(made.digest) == is_right
    assert store.fsck(deep=True).is_clean
    if is_right:
        assert store.read_log(log) == b"line\n"


def test_an_inventory_that_lies_mends_nothing(store, cache, tree):
    """STORE-33, SUB-7."""
    cache.write(tree_path(tree), Bytes(b"\xa0"))
    flip(blob_path(store, Digest.of_blob(LARGE)))
    made, troubles = mended(store, cache)
    assert made.lost == (tree,)
    assert troubles
