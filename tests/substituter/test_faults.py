"""Whatever a substituter does costs time: results are a build's, and the store is sound."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from time import sleep
from urllib.parse import urlsplit

import pytest

from kolm_build.core.digest import Digest
from kolm_build.engine.events import Substituted
from kolm_build.engine.protocol import BuildResult
from kolm_build.engine.scheduler import realise
from kolm_build.errors import CorruptObjectError, NetworkError
from kolm_build.store.local import LocalStore
from kolm_build.store.remote.address import open_place
from kolm_build.store.remote.folder import FolderPlace
from kolm_build.store.remote.http import Web, _redirected
from kolm_build.store.remote.layout import blob_path, tree_path
from kolm_build.store.remote.place import Limits
from tests.cli.command import ROOT
from tests.engine.test_scheduler import FakeBuilder, fake, graph, out
from tests.store.builders import make_folder
from tests.substituter.copying import (
    QUICK,
    fetch,
    model_folder,
    noise,
    publish,
    publish_claims,
    signing_key,
    substitutes,
    trusting,
)
from tests.substituter.serving import FAULTS, Faults, serving

KEY = signing_key()
TRUST = trusting(builder=KEY)
LARGE = 12 << 20


class ClosedBuilder(FakeBuilder):
    """Makes many small files and a large one; as if in a sandbox."""

    def build(self, derivation, resolved, on_event):
        self.built.append(derivation.name)
        texts = "".join(str(value.content) for _, value in resolved.inputs)
        files = {f"{n:02}": f"{derivation.name} {n} {texts}".encode() for n in range(40)}
        files |= {"large": noise(2 << 20, len(derivation.name)), "text": texts.encode()}
        folder = self.tmp / f"{derivation.name}-{len(self.built)}"
        content = self.store.ingest(make_folder(folder, files))
        return BuildResult(
            contents={"out": content},
            circumstances={"sandbox": "bubblewrap"},
            fetched=False,
            wall_ms=1,
        )


A = fake("a")
B = fake("bb", A)
NODES = graph(A, B)


@pytest.fixture
def cached(store, tmp_path, place):
    """What `B` is, and a folder that has it, signed."""
    builder = ClosedBuilder(store, tmp_path)
    made = realise(
        [out(B)], derivations=NODES, store=store, builder=builder, on_event=lambda _: None
    )
    cache = FolderPlace(str(place / "cache"))
    publish(store, cache, made.contents[out(B)], made.contents[out(A)])
    for node in (A, B):
        publish_claims(store, cache, made.keys[node.digest], key=KEY)
    return made.contents, place / "cache"


def build(other, tmp_path, *places, trust=TRUST, limits=QUICK):
    """`B`, with substituters; what was built, and the events."""
    builder, events = ClosedBuilder(other, tmp_path / "again"), []
    (tmp_path / "again").mkdir(exist_ok=True)
    with substitutes(other, *places, trust=trust, limits=limits) as (made, troubles):
        realised = realise(
            [out(B)], derivations=NODES, store=other, builder=builder,
            on_event=events.append, substitutes=made,
        )  # fmt: skip
    return realised.contents, builder.built, events, [error for _, error in troubles]


def test_without_a_fault_nothing_is_built_and_what_is_not_needed_is_not_copied(
    cached, other, tmp_path
):
    """SUB-19."""
    contents, folder = cached
    faults = Faults()
    with serving(folder, faults) as url:
        found, built, events, troubles = build(other, tmp_path, open_place(url, limits=QUICK))
    assert (found, built, troubles) == (contents, [], [])
    assert [type(event) for event in events if not hasattr(event, "done")] == [Substituted]
    assert not other.has_tree(contents[out(A)])
    assert tree_path(contents[out(A)]) in faults.paths()
    # Later builds need no substituter, and know what was believed.
    assert build(other, tmp_path)[1] == []


@pytest.mark.parametrize("where", ["^real/", "^tree/", "^cas/", "^pack/", "^format"])
@pytest.mark.parametrize("kind", FAULTS)
def test_no_fault_changes_a_result(kind, where, cached, other, tmp_path):
    """SUB-7, SUB-8, SUB-11, SUB-12."""
    contents, folder = cached
    with serving(folder, Faults(kind, where)) as url:
        found, built, _events, troubles = build(other, tmp_path, open_place(url, limits=QUICK))
    assert {one: found[one] for one in (out(B),)} == {out(B): contents[out(B)]}
    assert built in ([], ["a", "bb"], ["bb"])
    assert other.fsck(deep=True).is_clean
    assert all(isinstance(error.to_value()["code"], str) for error in troubles)


@pytest.mark.parametrize("kind", ["lie", "truncate", "hang", "error", "absent", "lengthen"])
def test_what_one_cannot_give_the_next_one_does(kind, cached, other, tmp_path):
    """SUB-12."""
    contents, folder = cached
    with serving(folder, Faults(kind, "^(cas|pack)/")) as bad, serving(folder) as good:
        places = [open_place(url, limits=QUICK) for url in (bad, good)]
        found, built, events, troubles = build(other, tmp_path, *places)
        (copied,) = [event for event in events if isinstance(event, Substituted)]
    assert (found, built) == (contents, [])
    assert copied.sources == (places[1].url,)
    assert len(troubles) == 1


def test_who_does_not_answer_is_asked_three_times_and_then_left_alone(cached, other, tmp_path):
    """SUB-11."""
    _contents, folder = cached
    faults = Faults("error", "^tree/")
    with serving(folder, faults) as url:
        _, built, _, troubles = build(other, tmp_path, open_place(url, limits=QUICK))
    assert built == ["a", "bb"]
    # Two inventories may have been asked for at once before the first failed.
    assert 3 <= len([path for path in faults.paths() if path.startswith("tree/")]) <= 6
    assert [type(error) for error in troubles] == [NetworkError.__subclasses__()[-1]]


def test_an_error_that_passes_costs_an_attempt(cached, other, tmp_path):
    """SUB-11."""
    _contents, folder = cached
    for kind in ("error", "busy", "truncate", "hang", "reset", "garbage", "wrong_range"):
        with (
            LocalStore.open(folder.parent / f"store-{kind}") as fresh,
            serving(folder, Faults(kind, "^cas/", times=2)) as url,
        ):
            _found, built, _, troubles = build(fresh, tmp_path, open_place(url, limits=QUICK))
        assert (kind, built, troubles) == (kind, [], [])


def test_a_wrong_object_is_fetched_once_more(cached, other, tmp_path):
    """SUB-11."""
    _contents, folder = cached
    faults = Faults("lie", "^cas/", times=1)
    with serving(folder, faults) as url:
        _, built, _, troubles = build(other, tmp_path, open_place(url, limits=QUICK))
    assert (built, troubles) == ([], [])
    faults = Faults("lie", blob_path(Digest.of_blob(noise(2 << 20, len("bb")))))
    with LocalStore.open(folder.parent / "third") as third, serving(folder, faults) as url:
        _, built, _, (error,) = build(third, tmp_path, open_place(url, limits=QUICK))
    assert isinstance(error, CorruptObjectError)
    assert error.expected.startswith("b3:")
    assert faults.paths().count(faults.where) == 2
    assert built == ["bb"], "the other is still asked for what it has: a came from it"


def test_a_cache_that_was_rolled_back_gives_what_it_still_has(cached, other, tmp_path):
    contents, folder = cached
    for path in (folder / "real").rglob("*"):
        if path.is_file() and path.name == _resolved(contents).hex:
            path.unlink()
    found, built, _, troubles = build(other, tmp_path, FolderPlace(str(folder)))
    assert (found, built, troubles) == (contents, ["bb"], [])


def _resolved(contents):
    return B.resolved_digest_with({out(A): contents[out(A)]})


def test_an_inventory_whose_blobs_are_gone_is_no_offer_that_lasts(cached, other, tmp_path):
    contents, folder = cached
    for path in (folder / "cas").rglob("*"):
        if path.is_file():
            path.unlink()
    found, built, _, (*troubles,) = build(other, tmp_path, FolderPlace(str(folder)))
    assert found == contents
    assert built == ["a", "bb"]
    assert troubles


def test_a_large_blob_goes_on_where_it_stopped(store, other, place, tmp_path):
    """SUB-9."""
    tree = store.ingest(make_folder(tmp_path / "f", {"large": noise(LARGE)}))
    publish(store, FolderPlace(str(place / "cache")), tree)
    faults = Faults("drop", "^cas/")
    with serving(place / "cache", faults) as url:
        arrived, troubles = fetch(other, tree, open_place(url, limits=QUICK))
    assert arrived is not None
    assert troubles == []
    ranges = [
        int(re.sub(r"\D", "", one or "0")) for _, path, one in faults.requests if "cas/" in path
    ]
    assert ranges == sorted(ranges)
    assert ranges[1:] == [(3 << 19) * n for n in range(1, 8)]


def test_a_copy_that_was_killed_goes_on_in_another_process(store, other, place, tmp_path):
    """SUB-9. What an earlier process left is hashed again, whatever it is."""
    data = noise(LARGE)
    b3 = Digest.of_blob(data)
    tree = store.ingest(make_folder(tmp_path / "f", {"large": data}))
    publish(store, FolderPlace(str(place / "cache")), tree)
    for left, first in ((data[: 5 << 20], 5 << 20), (b"x" * (5 << 20), 5 << 20), (data + b"x", 0)):
        with LocalStore.open(place / f"store-{Digest.of_blob(left).hex[:8]}") as fresh:
            begun = fresh.root / "tmp" / f"fetch-{b3.hex}"
            begun.mkdir()
            (begun / "bytes").write_bytes(left)
            faults = Faults()
            with serving(place / "cache", faults) as url:
                arrived, troubles = fetch(fresh, tree, open_place(url, limits=QUICK))
            assert (arrived is not None, troubles) == (True, [])
            ranges = [one for _, path, one in faults.requests if "cas/" in path]
            assert ranges[0] == (f"bytes={first}-" if first else None)
            assert fresh.fsck(deep=True).is_clean
            assert not begun.exists()


def test_a_process_that_is_killed_in_the_middle_loses_nothing(store, place, tmp_path):
    """SUB-7, SUB-9."""
    data = noise(LARGE)
    tree = store.ingest(make_folder(tmp_path / "f", {"large": data}))
    publish(store, FolderPlace(str(place / "cache")), tree)
    root = place / "killed"
    begun = root / "tmp" / f"fetch-{Digest.of_blob(data).hex}" / "bytes"
    with serving(place / "cache", Faults("stall", "^cas/")) as url:
        command = [sys.executable, "-m", "kolm_build", "copy", "--store", str(root)]
        process = subprocess.Popen(
            [*command, "--from", url, str(tree)],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stderr=subprocess.DEVNULL,
        )
        while not (begun.exists() and begun.stat().st_size == 5 << 20):
            assert process.poll() is None
            sleep(0.02)
        process.kill()
        process.wait()
    faults = Faults()
    with LocalStore.open(root) as again:
        assert not again.has_tree(tree)
        assert again.fsck(deep=True).is_clean
        with serving(place / "cache", faults) as url:
            assert fetch(again, tree, open_place(url, limits=QUICK))[0] is not None
        assert again.fsck(deep=True).is_clean
    assert ("GET", blob_path(Digest.of_blob(data)), f"bytes={5 << 20}-") in faults.requests


def test_what_failed_leaves_what_is_worth_going_on_with(store, other, place, tmp_path):
    """SUB-9."""
    data = noise(LARGE)
    tree = store.ingest(make_folder(tmp_path / "f", {"large": data}))
    publish(store, FolderPlace(str(place / "cache")), tree)
    with serving(place / "cache", Faults("drop", "^cas/", times=3)) as url:
        reader = open_place(url, limits=QUICK)
        inner = reader.open

        def cut(path, *, start=0):
            if start >= 3 << 20:
                raise NetworkError("the cable is out")
            return inner(path, start=start)

        reader.open = cut
        arrived, _ = fetch(other, tree, reader)
    begun = other.root / "tmp" / f"fetch-{Digest.of_blob(data).hex}" / "bytes"
    assert arrived is None
    assert not other.has_tree(tree)
    assert begun.read_bytes() == data[: 3 << 20]


def test_no_more_is_read_than_an_object_can_have(store, other, place, tmp_path):
    """SUB-8."""
    tree = store.ingest(make_folder(tmp_path / "f", {"file": noise(70_000)}))
    publish(store, FolderPlace(str(place / "cache")), tree)
    for kind in ("unending", "lengthen"):
        for where in ("^cas/", "^tree/", "^format"):
            with serving(place / "cache", Faults(kind, where)) as url:
                arrived, troubles = fetch(other, tree, open_place(url, limits=QUICK))
            assert arrived is None
            assert troubles
    assert not other.has_tree(tree)


def test_a_slow_one_is_given_up_by_a_clock(store, other, place, tmp_path):
    """SUB-11."""
    seconds = iter(range(0, 10_000, 20))
    limits = replace(Limits(), clock=lambda: float(next(seconds)), sleep=lambda _: None)
    tree = store.ingest(make_folder(tmp_path / "f", {"file": noise(70_000)}))
    publish(store, FolderPlace(str(place / "cache")), tree)
    with serving(place / "cache", Faults("slow", "^cas/")) as url:
        arrived, (error,) = fetch(other, tree, open_place(url, limits=limits), limits=limits)
    assert arrived is None
    assert (error.reason, error.expected) == ("too slow", "1024 bytes a second")


def test_redirections_are_followed_and_credentials_stay_at_home(store, other, place, tmp_path):
    """SUB-13."""
    tree = store.ingest(make_folder(tmp_path / "f", {"file": noise(70_000)}))
    publish(store, FolderPlace(str(place / "cache")), tree)
    seen = []
    with serving(place / "cache") as target, serving(place / "none") as home:
        from tests.substituter import serving as module

        def away(to, data):
            to._head(307, 0, Location=f"{target}{to.path}")

        def note(handler):
            seen.append((handler.server.server_address[1], handler.headers.get("Authorization")))

        module.FAULTS["away"] = away
        original = module.Handler._serve

        def serve(self, *, body):
            note(self)
            if self.server.server_address[1] == urlsplit(home).port:
                away(self, None)
            else:
                original(self, body=body)

        module.Handler._serve = serve
        try:
            url = home.replace("//", "//user:secret@")
            arrived, _troubles = fetch(other, tree, open_place(url, limits=QUICK))
        finally:
            module.Handler._serve = original
            del module.FAULTS["away"]
    assert arrived is not None
    assert "secret" not in arrived.source
    ports = {port: {auth for p, auth in seen if p == port} for port, _ in seen}
    assert ports[urlsplit(home).port] == {"Basic dXNlcjpzZWNyZXQ="}
    assert ports[urlsplit(target).port] == {None}


def test_nothing_is_redirected_from_https_to_http():
    """SUB-13."""
    assert _redirected("http://a/x", "/y") == "http://a/y"
    assert _redirected("http://a/x", "https://b/y") == "https://b/y"
    for target in ("http://a/x", "file:///etc/passwd", "ftp://a/b"):
        with pytest.raises(NetworkError, match="redirected"):
            _redirected("https://a/x", target)


def test_a_kept_connection_that_the_server_closed_is_opened_again(store, other, place, tmp_path):
    (place / "cache").mkdir()
    (place / "cache/one").write_bytes(b"one")
    with serving(place / "cache", Faults("reset", "one", times=1)) as url:
        web = Web(url, limits=QUICK)
        with pytest.raises(NetworkError):
            web.ask("GET", web.at("one"), {})
        for _ in range(3):
            with web.answer("GET", web.at("one")) as response:
                assert response.read() == b"one"
        web.close()


def test_a_model_with_shared_tensors_survives_a_lying_join(store, other, place, tmp_path):
    """SUB-7: joined blobs are hashed as a whole, too."""
    from kolm_build.store.inventory import Inventory

    tree = store.ingest(model_folder(tmp_path / "model"))
    cache = FolderPlace(str(place / "cache"))
    publish(store, cache, tree)
    path = place / "cache" / tree_path(tree)
    honest = Inventory.decode(path.read_bytes(), tree)
    (b3, parts), *rest = honest.joins.items()
    swapped = (parts[1], parts[0], *parts[2:])
    path.write_bytes(replace(honest, joins={b3: swapped, **dict(rest)}).encode())
    arrived, (error,) = fetch(other, tree, cache)
    assert arrived is None
    assert error.reason == "parts that do not give the blob"
    assert not other.has_tree(tree)
    assert other.fsck(deep=True).is_clean


def test_a_pack_that_names_its_blobs_wrongly_is_refused(store, other, place, tmp_path):
    """SUB-7: each blob of a pack is hashed by itself."""
    from kolm_build.store import pack
    from kolm_build.store.inventory import Inventory
    from kolm_build.store.remote.layout import pack_path

    tree = store.ingest(model_folder(tmp_path / "model"))
    cache = FolderPlace(str(place / "cache"))
    publish(store, cache, tree)
    path = place / "cache" / tree_path(tree)
    honest = Inventory.decode(path.read_bytes(), tree)
    ((b3, _),) = honest.packs
    data = (place / "cache" / pack_path(b3)).read_bytes()
    slices = pack.decode(data)
    lying = pack.encode([(one.b3, b"!" * one.size_bytes) for one in slices])
    name = Digest.of_blob(lying)
    target = place / "cache" / pack_path(name)
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(lying)
    path.write_bytes(replace(honest, packs=((name, len(lying)),)).encode())
    arrived, (error,) = fetch(other, tree, cache)
    assert (arrived, error.reason) == (None, "not the object that was asked for")
    assert other.fsck(deep=True).is_clean
