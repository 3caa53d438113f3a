"""Which content is believed, and why (spec/trust.md). No signature and no clock is needed here."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kolm_build.core.quorum import (
    BUILDS,
    BUILT,
    COPIED,
    GRADES,
    MACHINE,
    MAJORITY,
    ORGANISATION,
    REBUILT,
    Policy,
    Vote,
    Window,
    decide,
    is_grade_below,
    parse_time,
)
from kolm_build.errors import InvalidRecordError

ORGANISATIONS = {"ann": "acme", "ben": "acme", "cat": "cern", "dan": "desy"}
TWO = Policy(require=2, builders=ORGANISATIONS)
JAN, FEB, MAR, APR = (f"2026-0{month}-01T00:00:00Z" for month in range(1, 5))


def vote(signer, content="x", **other):
    known = {"kind": BUILT, "run": signer, "machine": f"m-{signer}", "platform": "p"}
    return Vote(signer=signer, content=content, **known | other)


def reasons(verdict):
    return {judged.vote.signer: judged.reason for judged in verdict.claims}


def test_enough_builders_who_say_the_same_are_believed():
    """QUORUM-7."""
    verdict = decide(TWO, [vote("ann"), vote("ben", kind=REBUILT)])
    assert (verdict.word, verdict.usable, verdict.missing) == ("met", "x", ())
    assert verdict.counts == {"x": 2}
    assert reasons(verdict) == {"ann": "", "ben": ""}


def test_too_few_are_not_and_it_is_said_of_whom_more_are_needed():
    """QUORUM-10."""
    verdict = decide(TWO, [vote("ann")])
    assert (verdict.word, verdict.usable) == ("not met", None)
    assert verdict.missing == ("1 of 2 distinct builders count; needed: 1 more of: ben, cat, dan",)
    assert decide(TWO, []).missing == (
        "0 of 2 distinct builders count; needed: 2 more of: ann, ben, cat, dan",
    )
    assert decide(TWO, []).grade is None


def test_one_who_claims_twice_by_two_keys_counts_once():
    """QUORUM-7."""
    verdict = decide(TWO, [vote("ann", keyid="1"), vote("ann", keyid="2", run="again")])
    assert verdict.counts == {"x": 1}
    assert [judged.reason for judged in verdict.claims] == [
        "",
        "ann is counted already, by another claim",
    ]


@pytest.mark.parametrize(
    ("claim", "reason"),
    [
        (vote("ben", kind=COPIED), "the type 'copied'; what counts is built or rebuilt"),
        (vote("ben", objection="the key was revoked"), "the key was revoked"),
        (vote("", objection="not signed"), "not signed"),
    ],
)
def test_what_does_not_count_is_listed_with_the_reason(claim, reason):
    """QUORUM-5, QUORUM-10."""
    verdict = decide(TWO, [vote("ann"), claim])
    assert verdict.word == "not met"
    assert reason in reasons(verdict)[claim.signer]


def test_a_policy_may_want_rebuilds_alone():
    """QUORUM-6."""
    policy = replace(TWO, statements=(REBUILT,))
    verdict = decide(policy, [vote("ann"), vote("ben", kind=REBUILT), vote("cat", kind=REBUILT)])
    assert verdict.usable == "x"
    assert "of the type 'built'; what counts is rebuilt" in reasons(verdict)["ann"]


def test_two_of_one_organisation_are_one():
    """QUORUM-8."""
    policy = replace(TWO, distinct=(ORGANISATION,))
    verdict = decide(policy, [vote("ann"), vote("ben")])
    assert verdict.word == "not met"
    assert reasons(verdict)["ben"] == "ann, of the same organisation, is counted already"
    assert verdict.missing == ("1 of 2 distinct builders count; needed: 1 more of: cat, dan",)
    assert decide(policy, [vote("ann"), vote("ben"), vote("cat")]).usable == "x"


def test_two_with_one_machine_record_are_one():
    """QUORUM-8."""
    policy = replace(TWO, distinct=(MACHINE,))
    verdict = decide(policy, [vote("ann", machine="m"), vote("cat", machine="m")])
    assert reasons(verdict)["cat"] == "it has the same machine record as the claim of ann"
    assert "on another machine" in verdict.missing[0]
    none = decide(policy, [vote("ann"), vote("cat", machine="")])
    assert reasons(none)["cat"] == "the claim has no record of its machine"


def test_as_many_are_counted_as_can_be():
    """QUORUM-8: ann on either machine, ben on the first only; taking the first leaves one."""
    policy = Policy(require=2, builders=dict.fromkeys(("ann", "ben")), distinct=(MACHINE,))
    votes = [vote("ann", machine="1"), vote("ann", machine="2"), vote("ben", machine="1")]
    assert decide(policy, votes).usable == "x"


def test_two_contents_are_an_alarm_even_where_one_of_them_does_not_count():
    """QUORUM-9."""
    policy = replace(TWO, statements=(REBUILT,))
    votes = [vote("ann", kind=REBUILT), vote("ben", kind=REBUILT), vote("cat", "y", kind=BUILT)]
    verdict = decide(policy, votes)
    assert (verdict.word, verdict.usable) == ("contested", None)
    assert verdict.counts == {"x": 2, "y": 0}
    assert verdict.missing == (
        "trusted builders claim several contents, and the policy uses none then",
    )


def test_only_who_is_trusted_can_raise_the_alarm():
    """QUORUM-9."""
    strangers = [
        vote("", "y", objection="not signed"),
        vote("cat", "y", kind=COPIED),
        vote("dan", "y", objection="the key was revoked"),
    ]
    assert decide(TWO, [vote("ann"), vote("ben"), *strangers]).word == "met"


def test_the_policy_may_use_the_majority_and_the_alarm_stays():
    """QUORUM-9."""
    policy = replace(TWO, contested=MAJORITY)
    verdict = decide(policy, [vote("ann"), vote("ben"), vote("cat", "y")])
    assert (verdict.word, verdict.usable, verdict.grade) == ("contested", "x", "R0")
    for votes in (
        [vote("ann"), vote("cat", "y")],
        [*map(vote, "ab"), vote("c", "y"), vote("d", "y")],
    ):
        verdict = decide(replace(policy, builders=dict.fromkeys("abcd")), votes)
        assert (verdict.word, verdict.usable) == ("contested", None)
        assert verdict.missing == ("no content has 2 distinct builders and more than half of all",)


@pytest.mark.parametrize(
    ("window", "time", "reason"),
    [
        (Window(), None, None),
        (Window(end=MAR), FEB, None),
        (Window(end=MAR), MAR, "the key expired at 2026-03-01T00:00:00Z"),
        (Window(end=MAR), None, "no trusted log says when it signed"),
        (Window(revoked=FEB), JAN, None),
        (Window(revoked=FEB), FEB, "the key was revoked as of 2026-02-01T00:00:00Z"),
        (
            Window(revoked=FEB),
            None,
            "the key is revoked as of 2026-02-01T00:00:00Z, and no trusted",
        ),
        (Window(start=FEB), FEB, None),
        (Window(start=FEB), JAN, "the key is good from 2026-02-01T00:00:00Z on"),
        (Window(start=JAN, end=MAR, revoked=APR), FEB, None),
    ],
)
def test_a_key_is_good_by_the_time_at_which_it_was_seen(window, time, reason):
    """WITNESS-3."""
    found = window.objection(time)
    assert (found is None) if reason is None else (reason in found)


@pytest.mark.parametrize("bounds", [{"end": JAN}, {"revoked": FEB}])
def test_a_key_that_is_never_good_is_refused(bounds):
    """QUORUM-4."""
    with pytest.raises(InvalidRecordError, match="never good"):
        Window(start=FEB, **bounds)


@pytest.mark.parametrize(
    "text", ["", "2026-01-01", "2026-01-01T00:00:00", "2026-02-30T00:00:00Z", "2026-01-01T0:00:00Z"]
)
def test_a_time_is_written_in_one_way(text):
    """QUORUM-2."""
    with pytest.raises(InvalidRecordError, match="not a time"):
        parse_time(text)


COMMITTED = replace(TWO, committed=True)


def test_claims_count_that_were_committed_to_before_others_were_shown():
    """COMMIT-3."""
    votes = [vote("ann", committed=JAN, seen=MAR), vote("ben", committed=FEB, seen=APR)]
    assert decide(COMMITTED, votes).usable == "x"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"committed": ""}, "no commitment"),
        ({"committed": MAR}, "when ann had shown the content"),
        ({"committed": APR}, "when ann had shown the content"),
    ],
)
def test_a_later_commitment_or_none_does_not_count(change, reason):
    """COMMIT-3."""
    late = replace(vote("ben", committed=FEB, seen=APR), **change)
    verdict = decide(COMMITTED, [vote("ann", committed=JAN, seen=MAR), late])
    assert verdict.word == "not met"
    assert reason in reasons(verdict)["ben"]


def test_a_claim_without_a_time_is_taken_to_have_come_first():
    """COMMIT-3."""
    votes = [vote("ann", committed=JAN), vote("ben", committed=FEB, seen=APR)]
    verdict = decide(COMMITTED, votes)
    assert "it is not known when ann showed this content" in reasons(verdict)["ben"]


def test_the_grade_is_what_the_claims_show():
    """GRADE-1, GRADE-2."""
    one = vote("ann", run="1", machine="m", platform="p-1")
    grades = [
        decide(TWO, votes).grade
        for votes in (
            [],
            [one],
            [one, replace(one, signer="ben")],
            [one, replace(one, signer="ben", run="2")],
            [one, replace(one, signer="ben", run="2", machine="n")],
            [one, replace(one, signer="ben", run="2", machine="n", platform="p-2")],
            [one, replace(one, signer="ben", content="y", run="2", machine="n", platform="p-2")],
            [one, replace(one, signer="ben", run="2", machine="n", objection="revoked")],
        )
    ]
    assert grades == [None, "R0", "R0", "R1", "R2", "R3", "R0", "R0"]


def test_portable_is_what_two_builders_made_on_two_architectures():
    """GRADE-2."""
    intel = vote("ann", platform="x86_64-v4+avx512_bf16/intel/none")
    arm = vote("ben", platform="aarch64+bf16/arm/none")
    older = vote("ben", platform="x86_64-v2/amd/none")
    assert decide(TWO, [intel, arm]).grade == "R4"
    assert decide(TWO, [intel, older]).grade == "R3"
    assert decide(TWO, [intel, replace(arm, signer="ann")]).grade == "R3"
    assert decide(TWO, [intel, replace(arm, machine="")]).grade == "R1"
    assert decide(TWO, [intel, replace(arm, objection="revoked")]).grade == "R0"
    assert decide(TWO, [intel, replace(arm, content="y")]).grade == "R0"
    assert decide(replace(TWO, grade="R4"), [intel, arm]).usable == "x"
    assert decide(replace(TWO, grade="R4"), [intel, older]).word == "not met"


def test_no_claim_is_below_every_grade():
    """GRADE-4."""
    assert [is_grade_below(None, grade) for grade in GRADES] == [True] * 5
    assert [is_grade_below("R2", grade) for grade in GRADES] == [False, False, False, True, True]


def test_a_policy_may_ask_for_a_grade():
    """GRADE-3."""
    policy = replace(TWO, grade="R2")
    votes = [vote("ann", machine="m"), vote("ben", machine="m")]
    verdict = decide(policy, votes)
    assert (verdict.word, verdict.usable) == ("not met", None)
    assert verdict.missing == ("the claims show the grade R1; asked for: R2",)
    assert decide(policy, [vote("ann"), vote("ben")]).usable == "x"


VOTES = st.lists(
    st.builds(
        vote,
        st.sampled_from(sorted(ORGANISATIONS)),
        st.sampled_from("xy"),
        kind=st.sampled_from((*BUILDS, COPIED)),
        machine=st.sampled_from(("", "1", "2", "3")),
        platform=st.sampled_from("pq"),
        seen=st.sampled_from(("", JAN, FEB, MAR)),
        committed=st.sampled_from(("", JAN, FEB)),
        objection=st.sampled_from(("", "", "revoked")),
    ),
    max_size=7,
)
POLICIES = st.builds(
    Policy,
    require=st.integers(1, 3),
    builders=st.just(ORGANISATIONS),
    statements=st.sampled_from((BUILDS, (BUILT,), (REBUILT,))),
    distinct=st.sampled_from(((), (ORGANISATION,), (MACHINE,), (ORGANISATION, MACHINE))),
    contested=st.sampled_from(("stop", MAJORITY)),
    committed=st.booleans(),
    grade=st.sampled_from(GRADES[:3]),
)


@given(POLICIES, VOTES)
def test_a_verdict_does_not_depend_on_the_order_of_the_claims(policy, votes):
    """QUORUM-8."""
    assert decide(policy, votes) == decide(policy, reversed(votes)) == decide(policy, votes * 2)


@given(POLICIES, VOTES)
def test_no_two_that_count_share_what_has_to_be_distinct_and_no_more_could(policy, votes):
    """QUORUM-8, against every set that could have been chosen."""
    verdict = decide(policy, votes)
    for content, count in verdict.counts.items():
        counted = [j.vote for j in verdict.claims if j.counts and j.vote.content == content]
        assert len(counted) == count
        assert _distinct(policy, counted)
        able = [
            j.vote
            for j in verdict.claims
            if j.vote.content == content
            and (j.counts or "counted" in j.reason or "same" in j.reason)
        ]
        assert not any(_distinct(policy, some) for some in combinations(able, count + 1))


def _distinct(policy, votes):
    seats = {policy.seat(one.signer) for one in votes}
    machines = {one.machine for one in votes} if MACHINE in policy.distinct else seats
    return len(seats) == len(machines) == len(votes)


@given(POLICIES, VOTES)
def test_every_claim_counts_or_has_a_reason_and_what_is_not_usable_lacks_something(policy, votes):
    """QUORUM-9, QUORUM-10."""
    verdict = decide(policy, votes)
    assert {judged.vote for judged in verdict.claims} == set(votes)
    assert all(judged.counts == (judged.reason == "") for judged in verdict.claims)
    assert (verdict.usable is None) == bool(verdict.missing)
    valid = {one.content for one in votes if one.is_valid}
    assert set(verdict.counts) == valid
    assert verdict.is_contested == (len(valid) > 1)
    if verdict.usable is not None:
        assert verdict.counts[verdict.usable] >= policy.require
