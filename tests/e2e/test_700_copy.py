"""`kolm copy`, and builds that copy instead of building."""

import io
import json
from dataclasses import replace

import pytest

from kolm_build.attest.keys import load
from kolm_build.core.digest import Digest
from kolm_build.store.local import LocalStore
from kolm_build.store.remote.credentials import Credentials
from kolm_build.store.remote.folder import FolderPlace
from kolm_build.store.remote.place import Limits
from kolm_build.store.remote.publish import Publisher, read_claims
from kolm_build.surfaces import places
from kolm_build.surfaces.addresses import addresses
from kolm_build.surfaces.substituting import signed
from kolm_build.surfaces.terminal import Terminal
from tests.cli.test_startup import imported
from tests.substituter.serving import Faults, serving


@pytest.fixture
def key(project, tmp_path):
    """The user's own key, which they trust."""
    project.ok("key", "new", "--unencrypted")
    project.ok("key", "trust", str(tmp_path / "home/.config/kolm/key.pem"), "--name", "me")


@pytest.fixture
def built(project, key):
    project.ok("lock")
    project.ok("build")
    return project


@pytest.fixture
def cache(built, tmp_path):
    """A folder with what was built, signed."""
    built.ok("copy", "--to", f"file://{tmp_path / 'cache'}")
    return tmp_path / "cache"


@pytest.fixture
def elsewhere(cache, tmp_path, monkeypatch):
    """The project's store is another, empty one from here on."""
    monkeypatch.setenv("KOLM_STORE", str(tmp_path / "elsewhere"))
    return tmp_path / "elsewhere"


def targets(answer):
    return json.loads(answer.out.splitlines()[-1])["targets"]


def test_what_was_built_is_copied_and_not_built_elsewhere(built, cache, elsewhere):
    """SUB-19."""
    place = f"file://{cache}"
    plan = built.ok("build", "--dry-run", "--substituter", place)
    assert "length           substitute: wanted" in plan.out
    assert "count            reuse: not needed" in plan.out
    assert plan.err == "0 to build, 2 to copy, 1 to reuse\n"
    answer = built.ok("build", "--substituter", place)
    assert answer.built() == []
    assert answer.err.count(f"from {place}") == 2
    # What the store knows now it need not ask for again, though it has no bytes of `count`.
    built.write("text.txt", "a b a c b a\n")
    assert built.ok("build").built() == []
    assert built.ok("build", "--dry-run").err == "0 to build, 3 to reuse\n"
    assert built.ok("build", "count").built() == ["count"]


def test_events_say_what_was_copied_and_from_where(built, cache, elsewhere):
    """CLI-4."""
    answer = built.ok("build", "--json", "--substituter", f"file://{cache}")
    events = [json.loads(line) for line in answer.out.splitlines()]
    copied = [event for event in events if event["event"] == "substituted"]
    assert {event["node"] for event in copied} == {"top", "length"}
    assert all(event["sources"] == [f"file://{cache}"] and event["bytes"] for event in copied)
    assert {"built", "started"} & {event["event"] for event in events} == set()


def test_copy_from_brings_the_targets_and_builds_nothing(built, cache, elsewhere):
    place = f"file://{cache}"
    answer = built.ok("copy", "--from", place)
    assert sorted(line.split()[0] for line in answer.out.splitlines()) == ["length", "top"]
    assert built.ok("copy", "--from", place).err.endswith("nothing to copy\n")
    assert built.ok("build").built() == []
    copied = built.ok("copy", "--from", place, "--json", "top")
    assert [json.loads(line)["event"] for line in copied.out.splitlines()] == ["copied", "done"]
    refused = built.kolm("copy", "--from", place, "count")
    assert refused.status == 4
    assert "no substituter can give the bytes" in refused.err


def test_with_closure_everything_goes_along(built, tmp_path, monkeypatch):
    place = f"file://{tmp_path / 'whole'}"
    answer = built.ok("copy", "--to", place, "--closure")
    assert sorted(line.split()[0] for line in answer.out.splitlines()) == ["count", "length", "top"]
    monkeypatch.setenv("KOLM_STORE", str(tmp_path / "elsewhere"))
    built.ok("copy", "--from", place, "--closure")
    assert built.ok("build", "count").built() == []
    assert "counted 3 words" in built.ok("log", "count").out


def test_a_tree_is_copied_by_its_digest_without_a_project_or_trust(
    built, cache, elsewhere, tmp_path, monkeypatch
):
    """SUB-14."""
    digest = targets(
        built.ok("copy", "--json", "--store", str(built.store), "--to", f"file://{cache}")
    )["top"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home/.config/kolm/trust.toml").unlink()
    answer = built.ok("copy", "--from", f"file:{cache.name}", digest)
    assert digest in answer.out
    assert "top.txt" in built.ok("show", digest).out
    absent = "b3:" + "0" * 64
    refused = built.kolm("copy", "--from", f"file://{cache}", absent)
    assert refused.status == 4
    assert "no substituter has this tree" in refused.err


def test_who_trusts_nobody_builds_and_is_told(built, cache, elsewhere, tmp_path):
    """SUB-14."""
    (tmp_path / "home/.config/kolm/trust.toml").unlink()
    answer = built.ok("build", "--substituter", f"file://{cache}")
    assert sorted(answer.built()) == ["count", "length", "top"]
    assert "no trust file" in answer.err
    missing = ("--dry-run", "--trust", "none")
    assert built.kolm("build", "--substituter", f"file://{cache}", *missing).status == 66


def test_over_http_the_settings_name_it_and_offline_leaves_it_out(
    built, cache, elsewhere, tmp_path, monkeypatch
):
    """SUB-20, CLI-15."""
    faults = Faults()
    with serving(cache, faults) as url:
        monkeypatch.setenv("KOLM_SUBSTITUTERS", url)
        answer = built.ok("build", "--dry-run", "--offline")
        assert answer.err == f"not asked, because of --offline: {url}\n3 to build, 0 to reuse\n"
        refused = built.kolm("build", "--offline", "--substituter", url)
        assert refused.status == 1
        assert "--offline forbids" in refused.err
        assert faults.requests == []
        assert built.ok("build", "--offline", "--substituter", f"file://{cache}").built() == []
        monkeypatch.setenv("KOLM_STORE", str(tmp_path / "third"))
        answer = built.ok("build")
        assert answer.built() == []
        assert f"from {url}" in answer.err


def test_what_opens_a_bucket_or_a_registry_is_read_from_the_environment(monkeypatch):
    """CLI-15, SUB-13."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    assert places.bucket_credentials() is None
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    assert places.bucket_credentials() == ("id", "hidden", "token")
    assert "hidden" not in repr(Credentials(name="id", secret="hidden", token="token"))
    monkeypatch.setenv("KOLM_OCI_USER", "user")
    monkeypatch.setenv("KOLM_OCI_PASSWORD", "hidden")
    assert places.registry_credentials() == ("user", "hidden")
    monkeypatch.setenv("KOLM_SUBSTITUTERS", " file:a  file:b ")
    out, err = io.StringIO(), io.StringIO()
    found = addresses(["file:c", "file:b"], offline=True, terminal=Terminal(out=out, err=err))
    assert (found, err.getvalue()) == (["file:c", "file:b", "file:a"], "")


def test_a_failing_cache_is_told_and_the_build_goes_on(built, cache, elsewhere):
    """SUB-12."""
    with serving(cache, Faults("page", ".")) as url:
        answer = built.ok("build", "--substituter", url)
        assert sorted(answer.built()) == ["count", "length", "top"]
        assert f"{url}/format: no substituter, or one of another version" in answer.err
        plan = built.ok("build", "--dry-run", "--json", "--substituter", url)
    assert json.loads(plan.out.splitlines()[0])["event"] == "plan"


def publish_lies(cache, rival, *, key_file):
    """A cache that claims another content for everything that `cache` has, signed."""
    key, place = load(key_file, passphrase=None), FolderPlace(str(rival))
    (rival.parent / "lie").write_text("lie")
    with LocalStore.open(rival.parent / "liar") as store:
        tree = store.ingest(rival.parent / "lie")
        publisher = Publisher(
            place, store.giver(), limits=Limits(), jobs=1, on_bytes=lambda *_: None
        )
        publisher.begin()
        publisher.tree(tree)
        for path in (one for one in (cache / "real").rglob("*") if one.is_file()):
            resolved = Digest(bytes.fromhex(path.name))
            for claim in read_claims(FolderPlace(str(cache)), resolved, Limits()):
                fact = replace(claim.realisation, content=tree)
                lie = replace(claim, realisation=fact, envelope=None)
                publisher.claims(resolved, [signed(lie, key)])


def test_two_trusted_caches_that_disagree_end_the_build_as_contested(
    built, cache, elsewhere, tmp_path
):
    """SUB-16."""
    publish_lies(cache, tmp_path / "rival", key_file=tmp_path / "home/.config/kolm/key.pem")
    places = ["--substituter", f"file://{cache}", "--substituter", f"file://{tmp_path / 'rival'}"]
    answer = built.kolm("build", *places)
    assert answer.status == 16
    assert "2 contents are claimed for one derivation" in answer.err
    assert built.kolm("build", "--dry-run", *places).status == 16
    assert built.kolm("copy", "--from", places[1], "--from", places[3]).status == 16


def test_what_was_built_openly_is_not_published(project, key, tmp_path):
    """SUB-18."""
    project.ok("lock")
    project.ok("build", "--sandbox=none")
    answer = project.kolm("copy", "--to", f"file://{tmp_path / 'cache'}")
    assert answer.status == 1
    assert "what was built without a sandbox is not published" in answer.err
    assert not list((tmp_path / "cache").rglob("real/*/*"))


def test_without_a_key_it_is_said_that_nobody_will_believe_it(project, tmp_path):
    project.ok("lock")
    project.ok("build")
    answer = project.ok("copy", "--to", f"file://{tmp_path / 'cache'}")
    assert "claims are not signed" in answer.err


def test_wrong_addresses_and_targets_are_refused(built, tmp_path):
    for address in ("ftp://x/y", "nowhere", "http://", "file://host/folder", "s3:///x"):
        answer = built.kolm("copy", "--from", address)
        assert (address, answer.status) == (address, 2)
        assert any(word in answer.err for word in ("substituter", "bucket", "folder"))
    assert built.kolm("copy").status == 2
    assert built.kolm("copy", "--to", "file:a", "--from", "file:b").status == 2
    assert built.kolm("copy", "--to", "file:a", "nothing").status == 2
    (tmp_path / "full").mkdir()
    (tmp_path / "full/letter.txt").write_text("dear")
    answer = built.kolm("copy", "--to", f"file://{tmp_path / 'full'}")
    assert answer.status == 4
    assert "holds other things" in answer.err
    assert built.kolm("copy", "--to", "http://127.0.0.1:1/x").status & 3


def test_what_was_never_built_is_not_copied(project, key):
    project.ok("lock")
    answer = project.kolm("copy", "--to", "file:cache")
    assert answer.status == 4
    assert "it was never built here" in answer.err


def test_a_build_with_nothing_to_do_imports_nothing_of_this(built, cache, elsewhere, monkeypatch):
    """CLI-14."""
    # Sources as old as a user's are: the note of a build is not written while they are fresh.
    monkeypatch.setattr("kolm_build.surfaces.shortcut.time_ns", lambda: 1 << 62)
    place = f"file://{cache}"
    built.ok("build", "--substituter", place)
    for argv in (["build"], ["build", "--substituter", place]):
        built.ok(*argv)
        found = imported(*argv)
        assert not [name for name in found if name.startswith("kolm_build.store.remote")]
        assert not found & {"ssl", "http.client", "socket", "cryptography", "kolm_build.attest"}
