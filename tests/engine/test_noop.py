"""The note of a build that has nothing to do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kolm_build.core.digest import Digest
from kolm_build.core.realisation import Realisation
from kolm_build.engine.noop import RACY_NS, Noted, noop_key, recall, remember
from kolm_build.store.local import LocalStore
from tests.engine.steps import derivation, folder

KEY = noop_key(recipe=b"recipe", lock=b"lock", version="1", platform="p", wanted=["out"])
LATE_NS = 1 << 62


@pytest.fixture
def result(store, tmp_path):
    content = folder(store, tmp_path, {"text": "result"})
    drv = derivation(Digest.of_blob(b"code"))
    noted = Noted(name="node.out", key=drv.resolved_digest, output="out", content=content)
    claim(store, noted, content)
    return noted


def claim(store, noted: Noted, content: Digest) -> None:
    drv = derivation(Digest.of_blob(b"code"))
    store.put_derivation(drv)
    store.add_realisation(
        Realisation(resolved=noted.key, output=noted.output, content=content),
        derivation=drv.digest,
        circumstances={},
    )


@pytest.fixture
def source(tmp_path) -> Path:
    place = tmp_path / "data"
    place.mkdir()
    (place / "rows.csv").write_text("a,b\n")
    return place


def test_a_note_gives_the_results_back(store, result, source):
    assert remember(store, KEY, [result], sources=[source], now_ns=LATE_NS)
    assert recall(store, KEY, sources=[source]) == (result,)


@pytest.mark.parametrize("part", ["recipe", "lock", "version", "platform", "wanted"])
def test_every_part_of_the_key_counts(part):
    parts = {"recipe": b"", "lock": b"", "version": "1", "platform": "p", "wanted": ["out"]}
    other = {"recipe": b"x", "lock": b"x", "version": "2", "platform": "q", "wanted": ["x"]}
    assert noop_key(**parts) != noop_key(**parts | {part: other[part]})


def test_an_edited_source_drops_the_note(store, result, source):
    """ENG-11. A note MUST NOT be believed once a source's size, times or inode changed."""
    remember(store, KEY, [result], sources=[source], now_ns=LATE_NS)
    (source / "rows.csv").write_text("a,c\n")
    assert recall(store, KEY, sources=[source]) is None


def test_an_edit_that_restores_the_time_drops_the_note(store, result, source):
    remember(store, KEY, [result], sources=[source], now_ns=LATE_NS)
    before = (source / "rows.csv").stat()
    (source / "rows.csv").write_text("a,c\n")
    os.utime(source / "rows.csv", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert recall(store, KEY, sources=[source]) is None


def test_a_new_file_in_a_source_folder_drops_the_note(store, result, source):
    remember(store, KEY, [result], sources=[source], now_ns=LATE_NS)
    (source / "more.csv").write_text("a,b\n")
    assert recall(store, KEY, sources=[source]) is None


def test_a_source_that_changed_just_now_is_not_noted(store, result, source):
    now_ns = (source / "rows.csv").stat().st_mtime_ns + RACY_NS // 2
    assert not remember(store, KEY, [result], sources=[source], now_ns=now_ns)
    assert recall(store, KEY, sources=[source]) is None


def test_a_collected_result_drops_the_note(store, result, source):
    """ENG-12. A note MUST NOT be believed once its results are gone or contested."""
    remember(store, KEY, [result], sources=[source], now_ns=LATE_NS)
    root = store.root
    store.close()
    with LocalStore.open(root) as again:
        again.collect(dry_run=False)
        assert recall(again, KEY, sources=[source]) is None


def test_a_contested_result_drops_the_note(store, result, source, tmp_path):
    remember(store, KEY, [result], sources=[source], now_ns=LATE_NS)
    claim(store, result, folder(store, tmp_path, {"text": "another"}))
    assert recall(store, KEY, sources=[source]) is None


def test_a_note_that_cannot_be_read_is_no_note(store, result, source):
    store.memo_put(KEY, b"\xff")
    assert recall(store, KEY, sources=[source]) is None
