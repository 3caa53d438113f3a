"""`kolm trust` on an artifact: which attestations count, and why the others do not."""

from __future__ import annotations

import json

import pytest

from tests.attest.helping import key
from tests.cli.command import kolm


def trust_file(folder, *principals, threshold=1, window=""):
    lines = ["version = 2", "[threshold]", f"builder = {threshold}"]
    for name, role, number in principals:
        public = f'"{key(number).public}"'
        text = f"{{key = {public}, {window}}}" if window else public
        lines += ["[[principal]]", f'name = "{name}"', f'roles = ["{role}"]', f"keys = [{text}]"]
    path = folder / "trust.toml"
    path.write_text("\n".join(lines))
    return str(path)


def test_an_artifact_that_enough_vouch_for_meets_the_policy(signed, tmp_path):
    """QUORUM-12."""
    answer = kolm("trust", str(signed), "--trust", trust_file(tmp_path, ("ci", "builder", 1)))
    assert answer.status == 0
    assert f"{signed}: met\n" in answer.out
    assert "  counts   built by ci\n" in answer.out


@pytest.mark.parametrize(
    ("principals", "options", "reason"),
    [
        ([("me", "builder", 2)], {}, "the trust file does not have this key"),
        (
            [("ci", "approver", 1), ("me", "builder", 2)],
            {},
            "ci has no role that may say 'built'",
        ),
        (
            [("ci", "builder", 1), ("log", "log", 3)],
            {"window": "until = 2999-01-01T00:00:00Z"},
            "no trusted log says when it signed",
        ),
    ],
)
def test_an_attestation_that_does_not_count_is_listed_with_the_reason(
    signed, tmp_path, principals, options, reason
):
    """QUORUM-10, QUORUM-12, WITNESS-4."""
    trust = trust_file(tmp_path, *principals, **options)
    answer = kolm("trust", str(signed), "--trust", trust)
    assert answer.status == 64
    assert reason in answer.out
    assert "missing  too few principals with the role builder vouch for it: 1 of " in answer.out
    value = json.loads(kolm("trust", str(signed), "--trust", trust, "--json").out)
    assert (value["verdict"], len(value["missing"])) == ("not met", 1)
    assert reason in value["claims"][0]["reason"]


def test_what_is_no_artifact_is_refused(tmp_path):
    (tmp_path / "x.kolm").write_bytes(b"nothing")
    trust = trust_file(tmp_path, ("ci", "builder", 1))
    assert kolm("trust", str(tmp_path / "x.kolm"), "--trust", trust).status == 64
