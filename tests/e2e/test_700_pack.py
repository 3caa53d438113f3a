"""A project goes into one file and comes out elsewhere: imported, restored, rebuilt offline."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kolm_build.attest.claims import open_statement
from kolm_build.core.digest import Digest
from kolm_build.store.remote.folder import FolderPlace
from kolm_build.store.remote.place import Limits
from kolm_build.store.remote.publish import read_claims
from tests.e2e.conftest import Project

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def built(project):
    """The words project, locked, built and recorded."""
    project.ok("lock")
    project.ok("build", "--record")
    return project


@pytest.fixture
def elsewhere(tmp_path):
    """Another machine's store, and the folder where a project will be."""
    return Project(root=tmp_path / "far" / "words", store=tmp_path / "far" / "store")


def at(place: Project, *argv: str) -> list[str]:
    return [*argv, "--store", str(place.store)]


def taken(place: Project, pack: Path, *argv: str) -> dict:
    answer = place.ok(
        *at(place, "import", str(pack), "--project", str(place.root), "--json"), *argv
    )
    return json.loads(answer.out)


def offline(place: Project, *argv: str) -> subprocess.CompletedProcess[str]:
    """`kolm` without a network, in the restored project, as far as this machine can do that."""
    alone = ["unshare", "-rn"]
    if subprocess.run([*alone, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no network namespaces here")
    home = place.store.parent / "home"
    home.mkdir(exist_ok=True)
    return subprocess.run(
        [*alone, sys.executable, "-m", "kolm_build", *argv],
        cwd=place.root,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "HOME": str(home),
            "KOLM_STORE": str(place.store),
        },
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_project_is_rebuilt_from_its_pack_alone(built, elsewhere):
    """PACK-20."""
    before = built.read("kolm.outputs")
    told = json.loads(built.ok("export", "--rebuildable", "-o", "x.kolmpack", "--json").out)
    assert told["bytes"] == (built.root / "x.kolmpack").stat().st_size
    taken(elsewhere, built.root / "x.kolmpack")
    shutil.rmtree(built.store)
    done = offline(elsewhere, "rebuild", "--offline")
    assert done.returncode == 0, done.stderr
    assert {line.split()[0] for line in done.stdout.splitlines()} == {"identical:"}
    assert elsewhere.read("kolm.outputs") == before


def test_a_restored_project_is_what_it_was(built, elsewhere):
    """PACK-18."""
    built.ok("export")
    told = taken(elsewhere, built.root / "words.kolmpack")
    names = [
        "count.py",
        "kolm.lock",
        "kolm.outputs",
        "kolm.toml",
        "length.py",
        "text.txt",
        "top.py",
    ]
    assert told["project"]["files"] == names
    assert told["project"]["elsewhere"] == []
    for name in names:
        assert elsewhere.read(name) == built.read(name)
    elsewhere.write("text.txt", "it may be changed\n")


def test_exporting_twice_gives_one_file_and_an_import_exports_it_again(built, elsewhere):
    """PACK-3."""
    built.ok("export", "-o", "one")
    built.ok("export", "-o", "two")
    taken(elsewhere, built.root / "one", "--accept-claims")
    elsewhere.ok(*at(elsewhere, "export", "-C", str(elsewhere.root), "-o", "three"))
    files = [(built.root / name).read_bytes() for name in ("one", "two", "three")]
    assert len(set(files)) == 1


def test_what_was_built_is_built_again_unless_its_claims_are_accepted(built, elsewhere):
    """PACK-16."""
    built.ok("export", "-o", "x.kolmpack")
    assert taken(elsewhere, built.root / "x.kolmpack")["claims_not_taken"] > 0
    plan = at(elsewhere, "build", "-C", str(elsewhere.root), "--dry-run")
    assert "build" in elsewhere.ok(*plan).out
    elsewhere.ok(*at(elsewhere, "import", str(built.root / "x.kolmpack"), "--accept-claims"))
    again = elsewhere.ok(*at(elsewhere, "build", "-C", str(elsewhere.root)))
    assert again.built() == []


def test_what_came_in_a_pack_is_published_as_copied_never_as_built(built, elsewhere, tmp_path):
    """SUB-22."""
    built.ok("export", "-o", "x.kolmpack")
    taken(elsewhere, built.root / "x.kolmpack", "--accept-claims")
    elsewhere.ok("key", "new", "--unencrypted")
    place = tmp_path / "place"
    copied = ("copy", "-C", str(elsewhere.root), "--to", f"file://{place}")
    elsewhere.ok(*at(elsewhere, *copied))
    assert kinds(place) == {"copied"}


def test_removing_the_root_of_an_import_makes_nothing_ones_own(built, elsewhere, tmp_path):
    """SUB-22, STORE-32."""
    built.ok("export", "-o", "x.kolmpack")
    root = taken(elsewhere, built.root / "x.kolmpack", "--accept-claims")["root"]
    elsewhere.ok("key", "new", "--unencrypted")
    elsewhere.ok(*at(elsewhere, "store", "roots", "--remove", root))
    copy = ("copy", "-C", str(elsewhere.root), "--to")
    elsewhere.ok(*at(elsewhere, *copy, f"file://{tmp_path / 'before'}"))
    assert kinds(tmp_path / "before") == {"copied"}
    elsewhere.ok(*at(elsewhere, "build", "-C", str(elsewhere.root), "--check"))
    elsewhere.ok(*at(elsewhere, *copy, f"file://{tmp_path / 'after'}"))
    assert kinds(tmp_path / "after") == {"built"}


def kinds(place: Path) -> set[str]:
    """What the claims in a folder of a substituter say of outputs: built, copied."""
    names = [path.name for path in place.rglob("real/**/*") if path.is_file()]
    claims = [
        claim
        for name in names
        for claim in read_claims(FolderPlace(str(place)), Digest(bytes.fromhex(name)), Limits())
    ]
    return {str(open_statement(one.envelope)[1].predicate["type"]) for one in claims}


def test_the_second_delivery_holds_what_is_new(built, elsewhere):
    """PACK-11, PACK-15."""
    built.ok("export", "-o", "first")
    built.replace("text.txt", "a b a c b a", "a b a c b a d")
    built.ok("lock")
    built.ok("build", "--record")
    built.ok("export", "-o", "whole")
    built.ok("export", "--thin", "--have", "first", "-o", "thin")
    size = {name: (built.root / name).stat().st_size for name in ("whole", "thin")}
    assert size["thin"] < size["whole"] / 2
    refused = elsewhere.kolm(*at(elsewhere, "import", str(built.root / "thin")))
    assert refused.status == 4
    assert "import the delivery" in refused.err
    elsewhere.ok(*at(elsewhere, "import", str(built.root / "first")))
    taken(elsewhere, built.root / "thin")
    assert elsewhere.read("text.txt") == built.read("text.txt")
    done = offline(elsewhere, "rebuild", "--offline")
    assert done.returncode == 0, done.stderr


def test_a_store_can_be_what_the_receiver_has(built, elsewhere):
    """PACK-11."""
    built.ok("export", "-o", "first")
    taken(elsewhere, built.root / "first")
    told = built.ok("export", "--thin", "--have", str(elsewhere.store), "-o", "thin", "--json")
    parts = json.loads(told.out)["parts"]
    assert parts["code"]["objects"] == parts["inputs"]["objects"] == 0
    elsewhere.ok(*at(elsewhere, "import", str(built.root / "thin")))


def test_without_outputs_only_the_means_travel(built, elsewhere):
    """PACK-8."""
    told = json.loads(built.ok("export", "--without-outputs", "-o", "x", "--json").out)
    assert told["parts"]["outputs"] == {"bytes": 0, "objects": 0}
    assert told["left_out"] == 3
    taken(elsewhere, built.root / "x")
    done = offline(elsewhere, "rebuild", "--offline")
    assert done.returncode == 0, done.stderr


def test_without_outputs_nothing_need_be_built(project, elsewhere):
    """PACK-8."""
    project.ok("lock")
    assert project.kolm("export").status == 4
    project.ok("export", "--without-outputs")
    taken(elsewhere, project.root / "words.kolmpack")
    elsewhere.ok(*at(elsewhere, "build", "-C", str(elsewhere.root)))


def test_a_file_that_is_there_is_no_pack_until_that_is_asked(built):
    """PACK-23."""
    built.ok("export", "-o", "first")
    for argv in ((), ("-o", "first")):
        built.write("words.kolmpack", "mine")
        before = built.read("words.kolmpack"), (built.root / "first").read_bytes()
        refused = built.kolm("export", *argv)
        assert (refused.status, "something is there already" in refused.err) == (2, True)
        assert "--force" in refused.err
        assert before == (built.read("words.kolmpack"), (built.root / "first").read_bytes())
    built.ok("export", "--force")
    one, other = ((built.root / name) for name in ("first", "words.kolmpack"))
    assert one.read_bytes() == other.read_bytes()
    assert other.stat().st_mode & 0o777 == 0o644
    nowhere = built.kolm("export", "-o", "none/x.kolmpack")
    assert (nowhere.status, "there is no such folder" in nowhere.err) == (2, True)


def test_a_pack_says_which_environments_it_lacks(built):
    answer = built.ok("export", "--json")
    assert all(not one["carried"] for one in json.loads(answer.out)["environments"])


def test_a_damaged_pack_is_refused_with_its_name_and_what_to_do(built, elsewhere):
    """PACK-19."""
    built.ok("export", "-o", "x.kolmpack")
    path = built.root / "x.kolmpack"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    for argv in (["--check"], [], ["--project", str(elsewhere.root)]):
        refused = elsewhere.kolm(*at(elsewhere, "import", str(path), *argv))
        assert refused.status == 2
        assert "x.kolmpack" in refused.err
        assert "get it again" in refused.err
        assert not elsewhere.root.exists()


def test_a_sound_pack_holds(built):
    built.ok("export", "-o", "x.kolmpack")
    told = json.loads(built.ok("import", "x.kolmpack", "--check", "--json").out)
    assert told["holds"] is True


def test_a_project_is_not_written_into_a_folder_that_is_taken(built, elsewhere):
    """PACK-18."""
    built.ok("export", "-o", "x.kolmpack")
    elsewhere.root.mkdir(parents=True)
    elsewhere.write("mine", "mine")
    pack = str(built.root / "x.kolmpack")
    refused = elsewhere.kolm(*at(elsewhere, "import", pack, "--project", str(elsewhere.root)))
    assert refused.status == 2
    assert [path.name for path in elsewhere.root.iterdir()] == ["mine"]
    assert not elsewhere.store.exists()


def test_a_source_outside_the_project_is_named_and_left_in_the_store(project, elsewhere):
    """PACK-18."""
    (project.root.parent / "text.txt").write_text("out here\n")
    project.replace("kolm.toml", "path:./text.txt", "path:../text.txt")
    project.ok("lock")
    project.ok("build")
    project.ok("export", "-o", "x.kolmpack")
    told = taken(elsewhere, project.root / "x.kolmpack")
    (outside,) = told["project"]["elsewhere"]
    assert outside.startswith("path:../text.txt b3:")
    assert not (elsewhere.root.parent / "text.txt").exists()


def test_thin_needs_something_to_be_thin_against(built):
    for argv in (["--thin"], ["--have", "x"]):
        refused = built.kolm("export", *argv)
        assert refused.status == 2
        assert "belong together" in refused.err


@pytest.mark.parametrize("trusted", [True, False])
def test_trust_roots_travel_as_a_file_that_nobody_believes(built, elsewhere, trusted, monkeypatch):
    """PACK-16."""
    if trusted:
        built.ok("key", "new", "--unencrypted")
        key = Path(os.environ["XDG_CONFIG_HOME"]) / "kolm/key.pem.pub"
        built.ok("key", "trust", str(key), "--name", "me")
    built.ok("export", "-o", "x.kolmpack")
    home = elsewhere.store.parent / "config"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home))
    taken(elsewhere, built.root / "x.kolmpack")
    assert (elsewhere.root / "trust.toml").exists() is trusted
    assert not home.exists()
