"""`kolm env`: what is locked, whether it is installed, and taking it along."""

import json

import pytest

from kolm_build.engine.probe import probe_interpreter
from tests.e2e.conftest import Project
from tests.e2e.test_700_pack import at, offline, taken

DATASET = """
[[step]]
name = "rows"
step = "dataset"
inputs = {rows = "path:./rows.jsonl"}
outputs = ["holdout", "report", "train"]
params = {prompt = "{a}", answer = "{b}", split_seed = "s", leakage = "drop"}
"""

ROWS = "".join(f'{{"a": "{number} and so on", "b": "{number % 3}"}}\n' for number in range(40))


@pytest.fixture
def kept(project):
    """The words project, built, its environment in the store."""
    project.ok("lock")
    project.ok("build", "--record")
    project.ok("env", "add")
    return project


@pytest.fixture
def elsewhere(tmp_path):
    return Project(root=tmp_path / "far" / "words", store=tmp_path / "far" / "store")


def value(answer):
    return json.loads(answer.out)


def test_what_is_locked_is_shown_with_the_systems_libraries(kept):
    """ENV-2, ENV-9."""
    shown = value(kept.ok("env", "show", "--json"))
    assert "blake3" in [one["name"] for one in shown["distributions"]]
    assert "lib/libc.so.6" in shown["native"]
    assert shown["tree"] is not None
    (listed,) = kept.ok("env", "list", "--json").out.splitlines()
    assert json.loads(listed)["environment"] == shown["environment"]


def test_before_it_is_taken_in_it_is_shown_without(project):
    project.ok("lock")
    answer = project.ok("env", "show")
    assert "blake3" in answer.out
    assert "not in the store" in answer.err
    assert project.ok("env", "list").out == ""
    refused = project.kolm("env", "check")
    assert refused.status == 4
    assert "kolm env add" in refused.err


def test_it_is_compared_with_what_is_installed(kept):
    assert "what is installed is what is locked" in kept.ok("env", "diff").out
    python = probe_interpreter().version
    kept.replace("kolm.lock", f'python = "{python}"', 'python = "3.0.1"')
    answer = kept.kolm("env", "diff")
    assert answer.status == 1
    assert answer.out.splitlines()[:2] == ["- python 3.0.1", f"+ python {python}"]
    refused = kept.kolm("env", "add")
    assert refused.status == 1
    assert "not the locked one" in refused.err


def test_a_file_of_it_that_changed_in_the_store_is_found(kept):
    told = value(kept.ok("env", "check", "--json"))
    assert told["sound"] is True
    assert told["files"] > 500
    largest = max((kept.store / "cas").rglob("*"), key=lambda path: path.stat().st_size)
    largest.chmod(0o644)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    refused = kept.kolm("env", "check")
    assert refused.status == 4
    assert "fsck --repair" in refused.err


def test_taking_it_in_twice_changes_nothing(kept):
    first = value(kept.ok("env", "add", "--json"))
    assert value(kept.ok("env", "add", "--json")) == first
    assert len(kept.ok("env", "list").out.splitlines()) == 1


def test_a_pack_carries_it_and_the_other_machine_builds_with_it(project, elsewhere):
    """ENV-5, ENV-6, PACK-20."""
    project.write("kolm.toml", project.read("kolm.toml") + DATASET)
    project.write("rows.jsonl", ROWS)
    project.ok("lock")
    project.ok("build", "--record")
    lacking = value(project.ok("export", "-o", "x.kolmpack", "--json"))
    assert [one["carried"] for one in lacking["environments"]] == [False]
    project.ok("env", "add")
    told = value(project.ok("export", "-o", "x.kolmpack", "--force", "--json"))
    assert [one["carried"] for one in told["environments"]] == [True]
    assert told["parts"]["environments"]["objects"] > 500
    taken(elsewhere, project.root / "x.kolmpack")
    assert len(elsewhere.ok(*at(elsewhere, "env", "list")).out.splitlines()) == 1
    for environment in ("stored", "any"):
        done = offline(elsewhere, "rebuild", "--offline", "--environment", environment)
        assert done.returncode == 0, done.stderr
        assert ("being unpacked from the store" in done.stderr) is (environment == "stored")
    unpacked = [path.name for path in (elsewhere.store / "env").iterdir()]
    assert len(unpacked) == 1  # for the stored one alone: the locked one is installed here
    assert elsewhere.ok(*at(elsewhere, "store", "fsck")).out.endswith("clean\n")
    thin = project.ok("export", "--thin", "--have", "x.kolmpack", "-o", "thin", "--json")
    assert value(thin)["parts"]["environments"]["objects"] == 0
    elsewhere.ok(*at(elsewhere, "import", str(project.root / "thin")))
    assert elsewhere.kolm("import", str(project.root / "thin")).status == 0  # where it was made


def test_the_stored_environment_must_be_there_if_it_is_asked_for(project):
    project.write("kolm.toml", project.read("kolm.toml") + DATASET)
    project.write("rows.jsonl", ROWS)
    project.ok("lock")
    refused = project.kolm("build", "--environment", "stored")
    assert refused.status == 1
    assert "the environment is not in the store" in refused.err
