"""Derivations, claims, logs and locks."""

import threading
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from kolm_build.core import cbor
from kolm_build.core.digest import Digest
from kolm_build.core.realisation import Realisation
from kolm_build.errors import InvalidRecordError, MissingObjectError
from kolm_build.store.claims import StoredRealisation
from kolm_build.store.local import LocalStore
from tests.store.builders import derivation, make_folder, realise


def test_a_derivation_comes_back(store: LocalStore) -> None:
    made = derivation()
    assert not store.has_derivation(made.digest)
    assert store.put_derivation(made) == made.digest
    assert store.put_derivation(made) == made.digest
    assert store.has_derivation(made.digest)
    assert store.derivation(made.digest) == made
    assert store.derivations() == (made.digest,)


def test_a_log_comes_back(store: LocalStore) -> None:
    log = store.put_log(b"line\n")
    assert log == Digest.of_blob(b"line\n")
    assert store.read_log(log) == b"line\n"


def test_a_claim_keeps_its_circumstances_and_envelope(store: LocalStore, place: Path) -> None:
    content = store.ingest(make_folder(place / "in", {"a": b"1"}))
    made = derivation()
    fact = Realisation(resolved=made.resolved_digest, output="out", content=content)
    store.add_realisation(
        fact, derivation=made.digest, circumstances={"wall_ms": 7}, envelope=b"{}"
    )
    (claim,) = store.realisations(made.resolved_digest, "out")
    assert claim.realisation == fact
    assert claim.derivation == made.digest
    assert claim.circumstances == {"wall_ms": 7}
    assert claim.envelope == b"{}"
    assert store.realisations(made.resolved_digest, "other") == ()


def test_claims_that_disagree_are_all_kept(store: LocalStore, place: Path) -> None:
    """STORE-18."""
    one = store.ingest(make_folder(place / "one", {"a": b"1"}))
    two = store.ingest(make_folder(place / "two", {"a": b"2"}))
    key = realise(store, derivation(), one, host="x")
    realise(store, derivation(), one, host="y")
    realise(store, derivation(), one, host="y")
    assert store.contents_of([(key, "out")]) == {(key, "out"): (one,)}
    realise(store, derivation(), two)
    assert store.contents_of([(key, "out"), (one, "out")]) == {
        (key, "out"): tuple(sorted([one, two]))
    }
    assert len(store.realisations(key, "out")) == 3


def test_a_claim_needs_its_content(store: LocalStore) -> None:
    """STORE-18."""
    with pytest.raises(MissingObjectError):
        realise(store, derivation(), Digest.of_blob(b"absent"))
    assert store.contents_of([(derivation().resolved_digest, "out")]) == {}


def test_circumstances_hold_no_floats(store: LocalStore, place: Path) -> None:
    content = store.ingest(make_folder(place / "in", {"a": b"1"}))
    with pytest.raises(InvalidRecordError):
        realise(store, derivation(), content, seconds=0.5)


def test_many_claims_are_looked_up_at_once(store: LocalStore, place: Path) -> None:
    content = store.ingest(make_folder(place / "in", {"a": b"1"}))
    known = [realise(store, derivation(f"n{number}"), content) for number in range(20)]
    asked = [(key, "out") for key in known] + [
        (Digest.of_blob(bytes([number % 256, number // 256])), "out") for number in range(25_000)
    ]
    assert store.contents_of(asked) == {(key, "out"): (content,) for key in known}
    assert store.contents_of([]) == {}


def test_a_waiter_is_told_who_builds(store: LocalStore) -> None:
    """STORE-19."""
    key = Digest.of_blob(b"key")
    told: list[str] = []
    order: list[str] = []

    def wait() -> None:
        with store.lock(key, on_wait=lambda who: (told.append(who), waiting.set())):
            order.append("second")

    waiting = threading.Event()
    with store.lock(key, on_wait=told.append, holder="process 7 on lab"):
        other = threading.Thread(target=wait)
        other.start()
        assert waiting.wait(10)
        order.append("first")
    other.join(10)
    assert told == ["process 7 on lab"]
    assert order == ["first", "second"]


def test_other_derivations_do_not_wait(store: LocalStore) -> None:
    keys = [Digest.of_blob(name) for name in (b"a", b"b")]
    for one, two in pairwise([*keys, keys[0]]):
        with store.lock(one, on_wait=pytest.fail), store.lock(two, on_wait=pytest.fail):
            pass


def test_threads_share_a_store(store: LocalStore, place: Path) -> None:
    folders = [make_folder(place / str(n), {f"f{n}": b"x" * n, "same": b"s"}) for n in range(8)]
    digests: dict[int, Digest] = {}
    threads = [
        threading.Thread(target=lambda n=n: digests.update({n: store.ingest(folders[n])}))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.has_trees(digests.values()) == set(digests.values())
    assert store.fsck().is_clean


def test_what_logs_say_of_a_claim_travels_in_its_file(store: LocalStore, place: Path) -> None:
    """STORE-31, WITNESS-5."""
    tree = store.ingest(make_folder(place / "f", {"f": b"f"}))
    resolved = realise(store, derivation(), tree)
    (plain,) = store.realisations(resolved, "out")
    said = plain.with_evidence((b"two", bytes(32)), (b"one", None), (b"one", None))
    assert said.evidence == ((b"one", None), (b"two", bytes(32)))
    store.add_claim(said)
    found = sorted(store.realisations(resolved, "out"), key=lambda claim: claim.evidence)
    assert found == [plain, said]
    assert store.fsck(deep=True).is_clean
    assert store.contents_of([(resolved, "out")]) == {(resolved, "out"): (tree,)}
    with pytest.raises(InvalidRecordError, match="too much"):
        store.add_claim(plain.with_evidence(*((bytes([n]), None) for n in range(65))))
    assert "evidence" not in cbor.decode(plain.encode())  # type: ignore[operator]  # a map


@pytest.mark.parametrize(
    "change",
    [
        {"evidence": []},
        {"evidence": [[b"two", None], [b"one", None]]},
        {"evidence": [[b"one", None], [b"one", None]]},
        {"evidence": [[bytes([n]), None] for n in range(65)]},
        {"evidence": [[b"one"]]},
        {"evidence": [["one", None]]},
        {"evidence": [[b"one", "nonce"]]},
        {"evidence": [[b"one", None]], "v": 1},
        {"v": 2},
        {"v": 3},
        {"delivered": True},
        {"v": 3, "delivered": False},
        {"v": 3, "delivered": 1},
        {"v": 3, "delivered": True, "envelope": b"signed"},
        {"v": 3, "delivered": True, "evidence": []},
    ],
)
def test_a_claim_that_is_not_what_its_version_says_is_not_read(
    store: LocalStore, place: Path, change: dict[str, object]
) -> None:
    """STORE-31, STORE-32, WITNESS-5."""
    tree = store.ingest(make_folder(place / "f", {"f": b"f"}))
    (plain,) = store.realisations(realise(store, derivation(), tree), "out")
    value = {**cbor.decode(plain.encode()), "v": 2, **change}  # type: ignore[dict-item]  # a map
    with pytest.raises(InvalidRecordError):
        StoredRealisation.decode(cbor.encode(value))


def test_a_mark_and_evidence_stand_in_one_file(store: LocalStore, place: Path) -> None:
    """STORE-31, STORE-32."""
    tree = store.ingest(make_folder(place / "f", {"f": b"f"}))
    (plain,) = store.realisations(realise(store, derivation(), tree), "out")
    for claim in (plain, plain.with_evidence((b"one", None))):
        marked = replace(claim, is_delivered=True)
        assert StoredRealisation.decode(marked.encode()) == marked
        assert marked.bare() == claim
        assert cbor.decode(marked.encode())["v"] == 3  # type: ignore[index,call-overload]  # a map
    with pytest.raises(InvalidRecordError, match="needs no mark"):
        replace(plain, envelope=b"signed", is_delivered=True).encode()
