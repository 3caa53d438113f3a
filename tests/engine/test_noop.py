"""The note of a build that has nothing to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kolm_build.core import cbor
from kolm_build.core.digest import Digest, RecordKind
from kolm_build.core.realisation import Realisation
from kolm_build.engine.noop import RACY_NS, Noted, memo_key, noop_key, recall, remember
from kolm_build.store.glance import Glance
from kolm_build.store.local import LocalStore
from tests.engine.steps import derivation, folder

KEY = noop_key(recipe=b"recipe", lock=b"lock", version="1", platform="p", wanted=["out"])
LATE_NS = 1 << 62


@pytest.fixture
def result(store, tmp_path):
    content = folder(store, tmp_path, {"text": "result"})
    drv = derivation(Digest.of_blob(b"code"))
    noted = Noted(name="node.out", key=drv.resolved_digest.raw, output="out", content=content.raw)
    claim(store, noted, content)
    return noted


def claim(store, noted: Noted, content: Digest) -> None:
    drv = derivation(Digest.of_blob(b"code"))
    store.put_derivation(drv)
    store.add_realisation(
        Realisation(resolved=Digest(noted.key), output=noted.output, content=content),
        derivation=drv.digest,
        circumstances={},
    )


@pytest.fixture
def rows(tmp_path) -> Path:
    place = tmp_path / "data"
    place.mkdir()
    (place / "rows.csv").write_text("a,b\n")
    return place / "rows.csv"


@pytest.fixture
def source(rows) -> str:
    return str(rows.parent)


def told(store, source: str) -> object:
    glance = Glance(str(store.root))
    try:
        return recall(glance, KEY, sources=[source])
    finally:
        glance.close()


def test_a_note_gives_the_results_back(store, result, source):
    assert remember(store, KEY, [result], sources=[source], now_ns=LATE_NS)
    (again,) = told(store, source)
    assert again.to_value() == result.to_value()


@pytest.mark.parametrize("part", ["recipe", "lock", "version", "platform", "wanted"])
def test_every_part_of_the_key_counts(part):
    parts = {"recipe": b"", "lock": b"", "version": "1", "platform": "p", "wanted": ["out"]}
    other = {"recipe": b"x", "lock": b"x", "version": "2", "platform": "q", "wanted": ["x"]}
    assert noop_key(**parts) != noop_key(**parts | {part: other[part]})


def test_an_edited_source_drops_the_note(store, result, source, rows):
    """ENG-11. A note MUST NOT be believed once a source's size, times or inode changed."""
    remember(store, KEY, [result], sources=[source], now_ns=LATE_NS)
    rows.write_text("a,c\n")
    assert told(store, source) is None


def test_an_edit_that_restores_the_time_drops_the_note(store, result, source, rows):
    remember(store, KEY, [result], sources=[source], now_ns=LATE_NS)
    before = rows.stat()
    rows.write_text("a,c\n")
    os.utime(rows, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert told(store, source) is None


def test_a_new_file_in_a_source_folder_drops_the_note(store, result, source, rows):
    remember(store, KEY, [result], sources=[source], now_ns=LATE_NS)
    rows.with_name("more.csv").write_text("a,b\n")
    assert told(store, source) is None


def test_a_source_that_changed_just_now_is_not_noted(store, result, source, rows):
    now_ns = rows.stat().st_mtime_ns + RACY_NS // 2
    assert not remember(store, KEY, [result], sources=[source], now_ns=now_ns)
    assert told(store, source) is None


def test_a_collected_result_drops_the_note(store, result, source):
    """ENG-12. A note MUST NOT be believed once its results are gone or contested."""
    remember(store, KEY, [result], sources=[source], now_ns=LATE_NS)
    root = store.root
    store.close()
    with LocalStore.open(root) as again:
        again.collect(dry_run=False)
        assert told(again, source) is None


def test_a_contested_result_drops_the_note(store, result, source, tmp_path):
    remember(store, KEY, [result], sources=[source], now_ns=LATE_NS)
    claim(store, result, folder(store, tmp_path, {"text": "another"}))
    assert told(store, source) is None


def test_a_note_that_cannot_be_read_is_no_note(store, result, source):
    store.memo_put(Digest(KEY), b"\xff")
    assert told(store, source) is None


def test_what_a_no_op_knows_by_heart_is_what_the_records_say(store, tmp_path):
    assert memo_key("x") == Digest.of_record(cbor.encode(["x"]), RecordKind.MEMO).raw
    tree = folder(store, tmp_path, {"text": "x"})
    glance = Glance(str(store.root))
    assert glance.has_trees([tree.raw])
    assert not glance.has_trees([tree.raw, store.put_blob(b"x").b3.raw])
    glance.close()


def test_a_no_op_imports_nothing_slow():
    code = "import sys, kolm_build.surfaces.shortcut; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    slow = {"dataclasses", "inspect", "tomllib", "json", "logging", "torch", "numpy", "asyncio"}
    slow |= {"typing", "pathlib", "sqlite3", "datetime", "urllib.parse", "contextlib"}
    assert slow.isdisjoint(done.stdout.split())
