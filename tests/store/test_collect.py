"""What the collector spares and takes."""

from datetime import date
from pathlib import Path

import pytest

from kolm_build.core.digest import Digest
from kolm_build.store import write
from kolm_build.store.collect import Collector
from kolm_build.store.local import LocalStore
from tests.store.builders import (
    content_input,
    derivation,
    make_folder,
    read_folder,
    realise,
    safetensors,
)


@pytest.fixture
def trees(store: LocalStore, place: Path) -> list[Digest]:
    """Three trees that share a file; the session that made them is over."""
    digests = []
    for name in ("one", "two", "three"):
        files = {"own": name.encode(), "same/x": b"same", "w.safetensors": _weights(name)}
        digests.append(store.ingest(make_folder(place / name, files)))
    store.close()
    return digests


def test_what_no_root_names_goes(store: LocalStore, place: Path, trees: list[Digest]) -> None:
    """STORE-20, STORE-22."""
    with LocalStore.open(store.root) as again:
        again.add_root("keep", trees=trees[:1])
        planned = again.collect(dry_run=True)
        assert again.has_trees(trees) == set(trees)
        done = again.collect(dry_run=False)
        assert done == planned
        assert done.freed_bytes > 0
        assert again.has_trees(trees) == {trees[0]}
        again.materialise(trees[0], place / "out")
        assert read_folder(place / "out") == read_folder(place / "one")
        report = again.fsck(deep=True)
        assert report.is_clean
        assert report.litter == 0
        again.remove_root("keep")
        again.remove_root("keep")


def test_a_derivation_keeps_outputs_and_inputs(store: LocalStore, trees: list[Digest]) -> None:
    """STORE-20, STORE-23."""
    with LocalStore.open(store.root) as again:
        made = derivation(inputs={"base": content_input(trees[0])})
        other = derivation("other")
        key = realise(again, made, trees[1])
        realise(again, other, trees[2])
        log = again.put_log(b"log")
        again.add_root("lock", derivations=[made.digest])
    with LocalStore.open(store.root) as again:
        again.collect(dry_run=False)
        assert again.has_trees(trees) == {trees[0], trees[1]}
        assert set(again.derivations()) == {made.digest, other.digest}
        assert len(again.realisations(other.resolved_digest, "out")) == 1
        assert again.contents_of([(key, "out")])
        assert again.read_log(log) == b"log"
        assert again.fsck().is_clean


def test_a_running_session_keeps_what_it_touched(store: LocalStore, trees: list[Digest]) -> None:
    """STORE-21."""
    with LocalStore.open(store.root) as builder, LocalStore.open(store.root) as collector:
        absent = Digest.of_blob(b"absent")
        assert builder.pin([trees[1], absent]) == {trees[1]}
        fresh = builder.put_blob(b"fresh")
        collector.collect(dry_run=False)
        assert collector.has_trees(trees) == {trees[1]}
        assert builder.read_blob(fresh.b3) == b"fresh"
    with LocalStore.open(store.root) as again:
        assert again.collect(dry_run=False).dead
        assert again.has_trees(trees) == set()


@pytest.mark.parametrize("how", ["root", "pin", "tree"])
def test_what_comes_to_life_during_a_collection_is_spared(
    store: LocalStore, place: Path, trees: list[Digest], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """STORE-21: between the decision and the deletion."""
    plan = Collector.plan
    builder = LocalStore.open(store.root)

    def plan_then_revive(self: Collector) -> object:
        planned = plan(self)
        if how == "root":
            builder.add_root("late", trees=[trees[2]])
        elif how == "pin":
            builder.pin([trees[2]])
        else:
            new = LocalStore.open(store.root)
            digests.append(new.ingest(make_folder(place / "new", {"again": b"three"})))
            new.close()
        return planned

    digests = [] if how == "tree" else [trees[2]]
    monkeypatch.setattr(Collector, "plan", plan_then_revive)
    with LocalStore.open(store.root) as collector:
        collector.collect(dry_run=False)
        assert collector.has_trees([*trees, *digests]) == set(digests)
        assert collector.fsck(deep=True).is_clean
    builder.close()


def test_a_writer_starts_again_when_what_it_relied_on_goes(
    store: LocalStore, place: Path, trees: list[Digest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """STORE-21: the collector wins between a writer's look and its commit."""
    flush_data = write.Batch._flush_data
    collected = []

    def collect_first(self: write.Batch) -> None:
        if not collected:
            collected.append(1)
            with LocalStore.open(store.root) as collector:
                collector.collect(dry_run=False)
        flush_data(self)

    monkeypatch.setattr(write.Batch, "_flush_data", collect_first)
    with LocalStore.open(store.root) as builder:
        assert builder.ingest(place / "two") == trees[1]
        assert builder.has_tree(trees[1])
        assert builder.fsck(deep=True).is_clean
    assert collected


def test_roots_end(store: LocalStore, place: Path, trees: list[Digest]) -> None:
    """STORE-24."""
    link = place / "kolm.lock"
    link.write_text("")
    with LocalStore.open(store.root) as again:
        again.add_root("day", trees=[trees[0]], expires=date(2026, 11, 23))
        again.add_root("file", trees=[trees[1]], path=link)
        assert [root.name for root in again.roots()] == ["day", "file"]
        again.collect(dry_run=False, today=date(2026, 11, 23))
        assert again.has_trees(trees) == {trees[0], trees[1]}
        link.unlink()
        again.collect(dry_run=False, today=date(2026, 11, 24))
        assert again.has_trees(trees) == set()
        assert again.roots() == ()


def test_litter_goes(store: LocalStore, trees: list[Digest]) -> None:
    """STORE-5, STORE-24: files without a row, dead sessions, free locks."""
    stray = store.root / "cas/aa" / ("aa" * 32)
    stray.write_bytes(b"half")
    dead = store.root / "tmp/dead"
    dead.mkdir()
    (dead / "3").write_bytes(b"half")
    with LocalStore.open(store.root) as again:
        with again.lock(trees[0], on_wait=pytest.fail):
            assert again.fsck().litter == 1
            again.collect(dry_run=False)
            assert len(list((store.root / "locks").iterdir())) == 1
        again.collect(dry_run=False)
        assert not list((store.root / "locks").iterdir())
        assert not stray.exists()
        assert not dead.exists()
        assert not list((store.root / "trash").iterdir())


def test_usage_counts_shared_bytes_once(store: LocalStore, trees: list[Digest]) -> None:
    with LocalStore.open(store.root) as again:
        again.add_root("one", trees=[trees[0]])
        again.add_root("two", trees=[trees[1]])
        usage = again.usage()
        one, two = usage.roots
        assert one.logical_bytes == len(b"one") + 4 + len(_weights("one"))
        assert one.own_bytes < one.disk_bytes < usage.disk_bytes < usage.logical_bytes
        assert two.name == "two"


def _weights(name: str) -> bytes:
    return safetensors({"base": b"b" * 20_000, "own": name.encode() * 2000})
