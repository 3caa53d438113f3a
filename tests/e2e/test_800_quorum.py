"""How many builders have to say the same: three stores, three keys, one reader (spec/trust.md)."""

import base64
import json

import pytest

from kolm_build.core.digest import Digest
from kolm_build.store.local import LocalStore
from kolm_build.surfaces import claiming
from tests.e2e.parties import FEBRUARY, JANUARY, MARCH, Parties
from tools.quorum_table import CASES, ROOT, asked


@pytest.fixture
def parties(project, tmp_path):
    project.ok("lock")
    made = Parties.below(project, tmp_path / "parties")
    made.builds("ann")
    return made


def cache_files(parties, name):
    return [path for path in (parties.folder / f"{name}-cache/real").rglob("*") if path.is_file()]


def claims(answer):
    (line,) = answer.out.splitlines()
    return json.loads(line)["claims"]


def test_two_of_three_meet_the_policy_one_does_not_and_a_copy_does_not_help(parties):
    """QUORUM-12, SUB-22."""
    trust = parties.trust()
    alone = parties.asks(trust, "ann")
    assert alone.status == 64
    assert "top.out: not met" in alone.out
    assert "counts   built by ann" in alone.out
    assert "missing  1 of 2 distinct builders count; needed: 1 more of: ben, cat" in alone.out

    parties.copies("cat", "ann")
    copied = parties.asks(parties.trust(), "ann", "cat")
    assert copied.status == 64
    assert "not      copied by cat: the claim is of the type 'copied'" in copied.out

    parties.builds("ben")
    met = parties.asks(parties.trust(), "ann", "ben", "cat")
    assert met.status == 0
    assert "top.out: met" in met.out
    assert "2 of 2  may be used" in met.out
    assert "grade    R1" in met.out

    trust = parties.trust(claims='distinct = ["machine"]')
    same = parties.asks(trust, "ann", "ben")
    assert same.status == 64
    assert "it has the same machine record as the claim of ann" in same.out

    trust = parties.trust(claims='distinct = ["organisation"]', organisations=[("ben", "of-ann")])
    kin = parties.asks(trust, "ann", "ben")
    assert kin.status == 64
    assert "ann, of the same organisation, is counted already" in kin.out


def test_a_build_believes_by_the_same_policy(parties, tmp_path):
    """QUORUM-11."""
    parties.builds("ben")
    trust = ("--trust", str(parties.trust()))
    ann, ben = ("--substituter", parties.cache("ann")), ("--substituter", parties.cache("ben"))
    plan = parties.ok("reader", "build", "--dry-run", *trust, *ann)
    assert plan.err.startswith("3 to build")
    plan = parties.ok("reader", "build", "--dry-run", *trust, *ann, *ben)
    assert plan.err.startswith("0 to build")
    assert parties.ok("reader", "build", *trust, *ann, *ben).built() == []
    # What was believed is in the store, and meets the policy without any cache.
    assert parties.asks(parties.trust()).status == 0


def test_builders_who_disagree_are_an_alarm_and_the_policy_may_use_the_majority(parties):
    """QUORUM-9, QUORUM-11, QUORUM-12."""
    parties.builds("cat")
    parties.lies("ben", "ann", about=parties.content("ann"))
    contested = parties.asks(parties.trust(), "ann", "ben", "cat")
    assert contested.status == 16 | 64
    assert "top.out: contested" in contested.out
    assert "alarm    trusted builders claim several contents" in contested.out
    trust = parties.trust(claims='contested = "majority"')
    majority = parties.asks(trust, "ann", "ben", "cat")
    assert majority.status == 16
    assert "2 of 2  may be used" in majority.out
    assert "alarm" in majority.out
    places = [
        text for name in ("ann", "ben", "cat") for text in ("--substituter", parties.cache(name))
    ]
    strict = parties.kolm("reader", "build", *places, "--trust", str(parties.trust()))
    assert strict.status == 16
    trust = parties.trust(claims='contested = "majority"')
    built = parties.ok("reader", "build", *places, "--trust", str(trust))
    assert built.built() == []
    assert "trusted builders claim several contents; the policy uses that of the" in built.err


def test_an_alarm_above_is_told_too(parties):
    """QUORUM-9, QUORUM-14."""
    parties.lies("ben", "ann")
    answer = parties.asks(parties.trust(threshold=1), "ann", "ben")
    assert answer.status == 16 | 64
    assert answer.out.startswith("count.out: contested")
    assert "top.out: not met" in answer.out
    assert "it is not known what is meant: count.out" in answer.out


def test_a_revoked_key_counts_for_what_a_log_saw_before_that_alone(parties):
    """WITNESS-3."""
    parties.builds("ben")
    revoked = [("ben", f"revoked = {FEBRUARY}")]
    answer = parties.asks(parties.trust(windows=revoked), "ann", "ben")
    assert answer.status == 64
    assert "revoked as of 2026-02-01T00:00:00Z, and no trusted log says when" in answer.out
    parties.sees("ben", MARCH)
    answer = parties.asks(parties.trust(windows=revoked), "ann", "ben")
    assert answer.status == 64
    assert "the key was revoked as of 2026-02-01T00:00:00Z; seen 2026-03-01T00:00:00Z" in answer.out
    parties.sees("ben", JANUARY)
    answer = parties.asks(parties.trust(windows=revoked), "ann", "ben")
    assert answer.status == 0
    assert "counts   built by ben, seen 2026-01-01T00:00:00Z" in answer.out


def test_a_log_says_the_time_it_is_told_or_that_of_its_clock(parties, monkeypatch):
    """CLI-16."""
    log = ("--key", str(parties.key_file("log")), "--at", parties.cache("ann"))
    monkeypatch.setattr(claiming, "now", lambda: MARCH)
    told = parties.ok("log", "claim", "witness", *log)
    assert told.out == f"2 claims were there at {MARCH}\n"
    before = [path.read_bytes() for path in sorted(cache_files(parties, "ann"))]
    parties.ok("log", "claim", "witness", *log)
    assert [path.read_bytes() for path in sorted(cache_files(parties, "ann"))] == before
    assert claims(parties.asks(parties.trust(), "ann", flags=["--json"]))[0]["seen"] == MARCH
    parties.ok("log", "claim", "witness", *log, "--time", FEBRUARY)
    assert claims(parties.asks(parties.trust(), "ann", flags=["--json"]))[0]["seen"] == FEBRUARY
    refused = parties.kolm("log", "claim", "witness", *log, "--time", "today")
    assert (refused.status, "not a time" in refused.err) == (2, True)


def test_a_verdict_is_json_too_and_names_every_claim(parties):
    """QUORUM-10, CLI-4."""
    parties.copies("cat", "ann")
    answer = parties.asks(parties.trust(), "ann", "cat", flags=["--json"])
    assert answer.status == 64
    (verdict,) = [json.loads(line) for line in answer.out.splitlines()]
    assert (verdict["output"], verdict["verdict"], verdict["usable"]) == (
        "top.out",
        "not met",
        None,
    )
    assert [(one["principal"], one["type"], one["counted"]) for one in verdict["claims"]] == [
        ("ann", "built", True),
        ("cat", "copied", False),
    ]
    assert len(verdict["missing"]) == 1


def test_an_input_whose_content_nobody_knows_is_named(parties):
    """QUORUM-10."""
    answer = parties.asks(parties.trust())
    assert answer.status == 64
    assert "it is not known what is meant: count.out" in answer.out
    assert "0 of 2 distinct builders count" in answer.out
    strangers = parties.kolm("reader", "trust", "--from", "file:nowhere", "--trust", "absent.toml")
    assert strangers.status == 66


def test_a_policy_that_can_never_be_met_is_refused(parties):
    """QUORUM-3."""
    answer = parties.asks(parties.trust(threshold=4), "ann")
    assert answer.status == 66
    assert "cannot be met" in answer.err


def test_what_was_rebuilt_is_signed_and_published(parties):
    """QUORUM-13."""
    key = ("--key", str(parties.key_file("ben")))
    parties.ok("ben", "build", "--no-sign")
    answer = parties.project.ok("rebuild", "--attest", *key, "--against", str(parties.store("ben")))
    assert "signed as rebuilt: 3 outputs" in answer.err
    parties.publishes("ben")
    trust = parties.trust(claims='statements = ["rebuilt"]', threshold=1)
    answer = parties.asks(trust, "ann", "ben")
    assert answer.status == 0
    assert "counts   rebuilt by ben" in answer.out
    assert "not      built by ann: the claim is of the type 'built'" in answer.out


def test_what_came_out_otherwise_is_signed_too_and_is_an_alarm(parties):
    """QUORUM-13, QUORUM-14."""
    project = parties.project
    project.replace("length.py", "str(len(text))", "__import__('os').urandom(4).hex()")
    project.ok("lock")
    parties.ok("ben", "build", "--no-sign")
    key = ("--key", str(parties.key_file("ben")))
    answer = project.kolm("rebuild", "--attest", *key, "--against", str(parties.store("ben")))
    assert answer.status == 16
    assert "signed as rebuilt: 3 outputs" in answer.err
    assert parties.kolm("ben", "build").status == 16
    # Nobody but ben signed, so nothing is contested by the policy; his store says otherwise.
    trust = ("--trust", str(parties.trust(threshold=1)))
    answer = parties.kolm("ben", "trust", "length", *trust)
    assert answer.status == 16
    assert "length.out: met" in answer.out
    assert answer.out.count("alarm    the store has a claim of b3:") == 2


def test_nothing_is_signed_without_a_sandbox_or_a_key(parties):
    """QUORUM-13."""
    project = parties.project
    key = ("--key", str(parties.key_file("ben")))
    answer = project.kolm("rebuild", "--attest", *key, "--sandbox=none")
    assert (answer.status, "is not signed" in answer.err) == (1, True)
    assert project.kolm("rebuild", *key).status == 2
    answer = project.kolm("rebuild", "--attest")
    assert (answer.status, "there is no key to sign with" in answer.err) == (66, True)


def test_caches_are_compared_without_building(parties):
    """CHALLENGE-1, CHALLENGE-2, CHALLENGE-3."""
    trust = ("--trust", str(parties.trust()))
    alone = parties.kolm("reader", "challenge", parties.cache("ann"), *trust)
    assert alone.status == 4
    assert "nothing was compared" in alone.err
    nowhere = f"file://{parties.folder}/nowhere"
    unasked = parties.kolm("reader", "challenge", nowhere)
    assert (unasked.status, "no substituter is there" in unasked.err) == (4 | 1, True)
    parties.builds("ben")
    both = [parties.cache("ann"), parties.cache("ben")]
    same = parties.ok("reader", "challenge", *both, *trust)
    assert same.err == "3 same, 0 differs, 0 not compared\n"
    assert f"{parties.cache('ann')}  b3:" in same.out
    assert same.out.count("built by ben") == 3
    one_down = parties.kolm("reader", "challenge", *both, nowhere, *trust)
    assert one_down.status == 1
    assert "3 same, 0 differs, 0 not compared\n" in one_down.err
    assert "not compared with all that was named: 1 of 3 caches did not answer" in one_down.err
    told = parties.kolm("reader", "challenge", *both, nowhere, *trust, "--json")
    (event,) = [line for line in map(json.loads, told.out.splitlines()) if "event" in line]
    assert (told.status, event["event"], event["url"]) == (1, "substituter", nowhere)
    parties.lies("cat", "ann")
    torn = parties.kolm("reader", "challenge", *both, parties.cache("cat"), nowhere)
    assert torn.status == 16 | 1
    differs = parties.kolm("reader", "challenge", *both, parties.cache("cat"))
    assert differs.status == 16
    assert "count.out: differs" in differs.out
    assert "top.out: not compared\n  it is not known what is meant: count.out" in differs.out
    found = parties.kolm("reader", "challenge", *both, "--json", "--target", "length")
    (answer,) = [json.loads(line) for line in found.out.splitlines()]
    assert (answer["output"], answer["verdict"]) == ("length.out", "same")
    assert len(answer["answers"]) == 2
    kept = [path for path in parties.store("reader").rglob("*") if path.parent.name == "real"]
    assert kept == []


def test_what_was_committed_to_before_it_was_shown_is_no_copy(parties):
    """COMMIT-3."""
    for name, committed, shown in (("ben", JANUARY, FEBRUARY), ("cat", MARCH, MARCH)):
        parties.commits(name, committed)
        parties.publishes(name)
        parties.sees(name, shown)
    answer = parties.asks(parties.trust(claims="committed = true"), "ben", "cat")
    assert answer.status == 64
    assert "counts   rebuilt by ben" in answer.out
    assert "committed to at 2026-03-01T00:00:00Z, when ben had shown the content" in answer.out


def test_a_commitment_tells_neither_content_nor_nonce_and_is_made_once(parties):
    """COMMIT-4."""
    parties.commits("ben", JANUARY)
    (file,) = (parties.folder / "ben-commitments").glob("*.commitment.json")
    text = base64.b64decode(json.loads(file.read_text())["payload"]).decode()
    with LocalStore.open(parties.store("ben"), read_only=True) as store:
        resolved = Digest.parse(json.loads(text)["predicate"]["resolved"])
        held = [pair for one in store.realisations(resolved, "out") for pair in one.evidence]
    nonces = {nonce for _, nonce in held if nonce is not None}
    assert len(nonces) == 1
    assert nonces.pop().hex() not in text
    assert parties.content("ben").removeprefix("b3:") not in text
    key = ("--key", str(parties.key_file("ben")), "-o", str(parties.folder / "again"))
    again = parties.kolm("ben", "claim", "commit", *key, "top")
    assert (again.status, "committed to already" in again.err) == (2, True)
    stranger = parties.kolm("ann", "claim", "commit", *key, "top")
    assert (stranger.status, "no claim of it is signed with this key" in stranger.err) == (4, True)


@pytest.mark.parametrize("case", [CASES[1], CASES[3]], ids=lambda case: case.title)
def test_the_page_of_verdicts_says_what_the_program_says(case, project, tmp_path):
    """QUORUM-10."""
    project.ok("lock")
    status, text = asked(case, Parties.below(project, tmp_path / "parties"))
    assert status == case.status
    page = (ROOT / "docs/quorum-verdicts.md").read_text()
    assert (
        f"## {case.title}\n\nGiven: {case.given}. Exit status {status}.\n\n```\n{text}```" in page
    )
