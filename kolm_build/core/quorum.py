"""Quorum: which content to believe, given who claims what (spec/trust.md).

The decision is a function of the policy and of what is known of each claim. It reads no clock and
checks no signature; contents and machines are digests as text. The standard library is enough.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from kolm_build.errors import InvalidRecordError

BUILT, REBUILT, COPIED = "built", "rebuilt", "copied"
TYPES = (BUILT, REBUILT, COPIED)
BUILDS = (BUILT, REBUILT)
ORGANISATION, MACHINE = "organisation", "machine"
DISTINCT = (ORGANISATION, MACHINE)
STOP, MAJORITY = "stop", "majority"
CONTESTED = (STOP, MAJORITY)
GRADES = ("R0", "R1", "R2", "R3", "R4")
RELEASE, GRADE = "release", "minimum_grade"
"""The table and the key of a lock that ask for a grade."""

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


def parse_time(text: str) -> str:
    """A UTC time of whole seconds, such as ``2026-01-31T12:00:00Z``; such texts sort by time.

    Raises:
        InvalidRecordError: It is not one.
    """
    try:
        if not _TIME.fullmatch(text):
            raise ValueError
        datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ")  # noqa: DTZ007  # the text's end says UTC
    except ValueError:
        raise InvalidRecordError(
            "not a time", expected="YYYY-MM-DDTHH:MM:SSZ, in UTC", actual=ascii(text)[:80]
        ) from None
    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """When a key is good. Times are texts of `parse_time`.

    Attributes:
        start: The first second; None for ever since.
        end: The first second after it; None for no end.
        revoked: From when on it is not to be believed; None where it was not revoked.

    Raises:
        InvalidRecordError: There is no second in it.
    """

    start: str | None = None
    end: str | None = None
    revoked: str | None = None

    def __post_init__(self) -> None:
        for where, last in (("until", self.end), ("revoked", self.revoked)):
            if last is not None and self.start is not None and last <= self.start:
                raise InvalidRecordError(
                    "a key that is never good",
                    where=where,
                    expected=f"later than {self.start}",
                    actual=last,
                )

    @property
    def is_open(self) -> bool:
        """Whether the key is good at any time, so that none has to be known."""
        return (self.start, self.end, self.revoked) == (None, None, None)

    def objection(self, time: str | None) -> str | None:
        """Why what was seen at `time` does not count; None where it does."""
        if self.is_open:
            return None
        if time is None:
            return f"the key is {self._bounds()}, and no trusted log says when it signed"
        if self.revoked is not None and time >= self.revoked:
            return f"the key was revoked as of {self.revoked}; seen {time}"
        if self.end is not None and time >= self.end:
            return f"the key expired at {self.end}; seen {time}"
        if self.start is not None and time < self.start:
            return f"the key is good from {self.start} on; seen {time}"
        return None

    def _bounds(self) -> str:
        parts = [
            ("good from", self.start),
            ("good until", self.end),
            ("revoked as of", self.revoked),
        ]
        return ", ".join(f"{word} {time}" for word, time in parts if time is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What it takes to believe a content.

    Attributes:
        require: How many distinct builders must claim it.
        builders: Every principal that may, with its organisation or None.
        statements: Which types of claim count.
        distinct: What no two of those that count may share, beside the principal.
        contested: `STOP` or `MAJORITY`.
        committed: Whether only claims count that were committed to before others were seen.
        grade: The least of `GRADES`.
    """

    require: int
    builders: Mapping[str, str | None]
    statements: tuple[str, ...] = BUILDS
    distinct: tuple[str, ...] = ()
    contested: str = STOP
    committed: bool = False
    grade: str = GRADES[0]

    def seat(self, principal: str) -> str:
        """What a principal is counted as: itself, or its organisation."""
        if ORGANISATION in self.distinct:
            return self.builders.get(principal) or principal
        return principal


@dataclass(frozen=True, slots=True, order=True, kw_only=True)
class Vote:
    """A claim about one output, and what is known of it.

    Attributes:
        content: What it says the output is.
        signer: The builder who signed it; empty where nobody's who is trusted.
        kind: Its type; empty where that is not known.
        keyid: The key that it names; empty for an unsigned one.
        run: The digest of its circumstances: one for each build.
        machine: The digest of the machine's record; empty where there is none.
        platform: The machine's platform; empty where there is none.
        seen: Its evidence time; empty where there is none.
        committed: When a commitment that opens for it was seen; empty where none was.
        objection: Why it is not valid; empty where nothing was found against it.
    """

    content: str
    signer: str = ""
    kind: str = ""
    keyid: str = ""
    run: str = ""
    machine: str = ""
    platform: str = ""
    seen: str = ""
    committed: str = ""
    objection: str = ""

    @property
    def architecture(self) -> str:
        """The processor's architecture, such as ``x86_64``; empty without a machine's record."""
        return re.split(r"[-+/]", self.platform, maxsplit=1)[0] if self.machine else ""

    @property
    def is_valid(self) -> bool:
        """Whether a trusted builder says, credibly, to have made this content."""
        return bool(self.signer) and not self.objection and self.kind in BUILDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A claim as it was judged.

    Attributes:
        vote: The claim.
        reason: Why it does not count; empty where it does.
    """

    vote: Vote
    reason: str

    @property
    def counts(self) -> bool:
        """Whether it is one of the k."""
        return not self.reason

    def to_value(self) -> dict[str, object]:
        """The plain value."""
        vote = self.vote
        return {
            "content": vote.content,
            "type": vote.kind or None,
            "principal": vote.signer or None,
            "keyid": vote.keyid or None,
            "machine": vote.machine or None,
            "platform": vote.platform or None,
            "seen": vote.seen or None,
            "committed": vote.committed or None,
            "counted": self.counts,
            "reason": self.reason or None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What follows from a policy and claims.

    Attributes:
        required: How many distinct builders are asked for.
        claims: Every claim, judged.
        counts: Content to how many distinct builders count for it; those of valid claims alone.
        usable: The content that may be used; None where none may.
        grade: How well it was shown to be reproducible; None where nothing valid was claimed.
        missing: What it lacks, for people.
    """

    required: int
    claims: tuple[Judged, ...]
    counts: Mapping[str, int] = field(hash=False)
    usable: str | None
    grade: str | None
    missing: tuple[str, ...]

    @property
    def is_contested(self) -> bool:
        """Whether trusted builders claim several contents: an alarm."""
        return len(self.counts) > 1

    @property
    def word(self) -> str:
        """``met``, ``not met`` or ``contested``."""
        if self.is_contested:
            return "contested"
        return "not met" if self.usable is None else "met"

    def to_value(self) -> dict[str, object]:
        """The plain value."""
        return {
            "verdict": self.word,
            "required": self.required,
            "usable": self.usable,
            "grade": self.grade,
            "contents": [
                {"content": content, "counted": count} for content, count in self.counts.items()
            ],
            "claims": [judged.to_value() for judged in self.claims],
            "missing": list(self.missing),
        }


def decide(policy: Policy, votes: Iterable[Vote]) -> Verdict:
    """Which content may be used, and why.

    Args:
        policy: What it takes.
        votes: The claims about one output, in any order; one that is there twice counts once.

    Returns:
        The same verdict for the same claims, whatever their order.
    """
    cast = sorted(set(votes), key=_rank)
    reasons = {vote: _objection(policy, vote, cast) for vote in cast}
    contents = sorted({vote.content for vote in cast if vote.is_valid})
    counts = {}
    for content in contents:
        able = [vote for vote in cast if vote.content == content and not reasons[vote]]
        chosen = _chosen(policy, able)
        counts[content] = len(chosen)
        reasons.update({vote: _passed_over(policy, vote, chosen) for vote in able})
    grade = grade_of(vote for vote in cast if vote.is_valid)
    claims = tuple(Judged(vote=vote, reason=reasons[vote]) for vote in cast)
    enough = _enough(policy, counts)
    missing = _missing(policy, claims, counts, enough, grade)
    return Verdict(
        required=policy.require,
        claims=claims,
        counts=counts,
        usable=None if missing else enough,
        grade=grade,
        missing=missing,
    )


def grade_of(votes: Iterable[Vote]) -> str | None:
    """The grade that valid claims show; None where there are none."""
    cast = list(votes)
    if not cast:
        return None
    if len({vote.content for vote in cast}) > 1:
        return GRADES[0]
    if _on_two_architectures(cast):
        return "R4"
    for grade, things in (
        ("R3", {vote.platform for vote in cast if vote.machine}),
        ("R2", {vote.machine for vote in cast}),
        ("R1", {vote.run for vote in cast}),
    ):
        if len(things - {""}) > 1:
            return grade
    return GRADES[0]


def _on_two_architectures(votes: Iterable[Vote]) -> bool:
    """Whether two principals made it, on processors of two architectures."""
    makers = {(vote.signer, vote.architecture) for vote in votes if vote.architecture}
    return any(
        signer != other and here != there for signer, here in makers for other, there in makers
    )


def is_grade_below(grade: str | None, least: str) -> bool:
    """Whether claims that show `grade` show less than `least`."""
    return grade is None or GRADES.index(grade) < GRADES.index(least)


def parse_grade(text: str) -> str:
    """`text` as a grade.

    Raises:
        InvalidRecordError: It is none.
    """
    if text not in GRADES:
        raise InvalidRecordError("not a grade", expected=", ".join(GRADES), actual=repr(text)[:80])
    return text


def _rank(vote: Vote) -> tuple[object, ...]:
    """The order of claims: by content and builder, those that say most first."""
    return (
        *(vote.content, vote.signer, vote.objection, vote.committed == "", vote.committed),
        *(vote.kind, vote.seen == "", vote.seen, vote.machine, vote.keyid, vote),
    )


def _objection(policy: Policy, vote: Vote, cast: Sequence[Vote]) -> str:
    """Why `vote` cannot be one of the k whatever the others are; empty where it can."""
    if vote.objection:
        return vote.objection
    if vote.kind not in policy.statements:
        return f"the claim is of the type {vote.kind!r}; what counts is " + " or ".join(
            policy.statements
        )
    if MACHINE in policy.distinct and not vote.machine:
        return "the claim has no record of its machine"
    return _uncommitted(vote, cast) if policy.committed else ""


def _uncommitted(vote: Vote, cast: Sequence[Vote]) -> str:
    """Why `vote` is not known to be older than what others have shown."""
    if not vote.committed:
        return "no commitment that a trusted log has seen opens for this claim"
    for other in cast:
        if not other.is_valid or other.signer == vote.signer or other.content != vote.content:
            continue
        if not other.seen:
            return f"it is not known when {other.signer} showed this content: perhaps before"
        if other.seen <= vote.committed:
            return f"committed to at {vote.committed}, when {other.signer} had shown the content"
    return ""


def _chosen(policy: Policy, able: Sequence[Vote]) -> tuple[Vote, ...]:
    """As many of `able` as can be without two that share what has to be distinct.

    Seats and machines are matched along augmenting paths; without the machine every seat has one.
    """
    offers: dict[str, dict[str, Vote]] = {}
    for vote in able:
        seat = policy.seat(vote.signer)
        machine = vote.machine if MACHINE in policy.distinct else seat
        offers.setdefault(seat, {}).setdefault(machine, vote)
    taken: dict[str, str] = {}

    def settle(seat: str, tried: set[str]) -> bool:
        for machine in offers[seat]:
            if machine not in tried:
                tried.add(machine)
                if machine not in taken or settle(taken[machine], tried):
                    taken[machine] = seat
                    return True
        return False

    for seat in offers:
        settle(seat, set())
    return tuple(offers[seat][machine] for machine, seat in taken.items())


def _passed_over(policy: Policy, vote: Vote, chosen: Sequence[Vote]) -> str:
    """Why `vote`, which could count, is not among those chosen; empty where it is."""
    if vote in chosen:
        return ""
    for other in chosen:
        if other.signer == vote.signer:
            return f"{vote.signer} is counted already, by another claim"
        if policy.seat(other.signer) == policy.seat(vote.signer):
            return f"{other.signer}, of the same organisation, is counted already"
    for other in chosen:
        if other.machine == vote.machine:
            return f"it has the same machine record as the claim of {other.signer}"
    return "it shares an organisation or machine with those that are counted"


def _enough(policy: Policy, counts: Mapping[str, int]) -> str | None:
    """The content that the numbers allow to use."""
    if len(counts) > 1 and policy.contested == STOP:
        return None
    for content, count in counts.items():
        if count >= policy.require and 2 * count > sum(counts.values()):
            return content
    return None


def _missing(
    policy: Policy,
    claims: Sequence[Judged],
    counts: Mapping[str, int],
    enough: str | None,
    grade: str | None,
) -> tuple[str, ...]:
    if len(counts) > 1 and policy.contested == STOP:
        return ("trusted builders claim several contents, and the policy uses none then",)
    if enough is None and len(counts) > 1:
        return (f"no content has {policy.require} distinct builders and more than half of all",)
    found = []
    if enough is None:
        found.append(_more(policy, claims, max(counts.values(), default=0)))
    if policy.grade != GRADES[0] and is_grade_below(grade, policy.grade):
        found.append(
            f"the claims show the grade {grade or 'of nothing'}; asked for: {policy.grade}"
        )
    return tuple(found)


def _more(policy: Policy, claims: Sequence[Judged], count: int) -> str:
    """How many more are needed, and of whom they can be."""
    seated = {policy.seat(judged.vote.signer) for judged in claims if judged.counts}
    others = [name for name in policy.builders if policy.seat(name) not in seated]
    more = f"{policy.require - count} more of: {', '.join(others)}" if others else "another claim"
    if MACHINE in policy.distinct and seated:
        more += ", on another machine"
    return f"{count} of {policy.require} distinct builders count; needed: {more}"
