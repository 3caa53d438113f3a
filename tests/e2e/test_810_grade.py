"""A lock that asks for a grade: nothing is released, rebuilt or verified on less."""

import pytest

from kolm_build.attest.sign import sign_artifact
from kolm_build.core.lock import parse_lock
from tests.artifact.making import make
from tests.e2e.conftest import Project
from tests.e2e.parties import Parties

ASKS = '\n[release]\nminimum_grade = "{}"\n'


@pytest.fixture
def parties(project, tmp_path):
    project.write("kolm.toml", project.read("kolm.toml") + ASKS.format("R1"))
    project.ok("lock")
    return Parties.below(project, tmp_path / "parties")


def test_a_lock_says_which_grade_it_asks_for_and_old_ones_ask_for_none(project):
    """LOCK-16."""
    project.ok("lock")
    before = project.read("kolm.lock")
    assert parse_lock(before).minimum_grade is None
    assert "release" not in before
    project.write("kolm.toml", project.read("kolm.toml") + ASKS.format("R2"))
    stale = project.kolm("build")
    assert stale.status == 2
    assert "[release]" in stale.err
    told = project.ok("lock").out
    assert "minimum grade" in told
    after = project.read("kolm.lock")
    assert parse_lock(after).minimum_grade == "R2"
    project.replace("kolm.toml", '[release]\nminimum_grade = "R2"\n', "")
    project.ok("lock")
    assert project.read("kolm.lock") == before


@pytest.mark.parametrize("text", ['"R5"', "1", '""', '"R1"\nmore = 1'])
def test_what_is_no_grade_is_refused(project, text):
    """RECIPE-25."""
    project.write("kolm.toml", project.read("kolm.toml") + f"\n[release]\nminimum_grade = {text}\n")
    refused = project.kolm("lock")
    assert refused.status == 2
    assert "release" in refused.err


def test_a_build_is_not_released_until_the_claims_show_the_grade(parties):
    """GRADE-4."""
    trust = ("--trust", str(parties.trust(threshold=1)))
    refused = parties.kolm("ann", "build", "--no-sign", *trust)
    assert refused.status == 64
    assert "not shown to be as reproducible as its lock asks" in refused.err
    assert "expected: the grade R1" in refused.err
    assert "actual:   no valid claim" in refused.err
    parties.publishes("ann")  # which signs
    own = ("--substituter", parties.cache("ann"))
    assert "actual:   R0" in parties.kolm("ann", "build", "--no-sign", *trust, *own).err

    assert parties.kolm("ben", "build", "--no-sign", *trust).status == 64
    parties.publishes("ben")
    caches = ("--substituter", parties.cache("ann"), "--substituter", parties.cache("ben"))
    for _ in range(2):  # it is looked at every time
        assert parties.ok("ann", "build", "--no-sign", *trust, *caches).built() == []
    assert parties.kolm("ann", "build", "--no-sign", *trust).status == 64
    untrusting = parties.kolm("ann", "build", "--no-sign", *caches)
    assert untrusting.status & 64
    assert "there is no trust file" in untrusting.err


def test_a_rebuild_signs_what_it_made_and_says_whether_that_is_enough(parties):
    """GRADE-5."""
    trust = ("--trust", str(parties.trust(threshold=1)))
    key = (
        "--attest",
        "--key",
        str(parties.key_file("ann")),
        "--against",
        str(parties.store("ann")),
    )
    parties.kolm("ann", "build", "--no-sign", *trust)
    first = parties.project.kolm("rebuild", *key, *trust)
    assert first.status == 64
    assert "identical" in first.out
    assert "actual:   R0" in first.err
    second = parties.project.ok("rebuild", *key, *trust)
    assert "identical" in second.out
    assert parties.ok("ann", "build", "--no-sign", *trust).built() == []


def test_an_artifact_is_not_verified_without_the_claims_that_its_lock_asks_for(parties, tmp_path):
    """GRADE-6."""

    def ask(inputs):
        text = inputs["story"]["kolm.lock"].decode()
        inputs["story"]["kolm.lock"] = (text + ASKS.format("R1")).encode()

    file = make(tmp_path / "made", ask)
    project: Project = parties.project
    trust = str(parties.trust(threshold=1))
    project.ok("verify", str(file), "--no-trust")
    signed = tmp_path / "signed.kolm"
    sign_artifact(file, signed, key=parties.key("ann"))
    refused = project.kolm("verify", str(signed), "--trust", trust)
    assert refused.status == 64
    assert "an artifact holds no claims that show one" in refused.err
    assert "--claims" in refused.err
