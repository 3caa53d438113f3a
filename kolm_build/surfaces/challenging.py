"""Comparing what several places claim of an output (spec/trust.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kolm_build.attest.claims import opened
from kolm_build.errors import SignatureError
from kolm_build.surfaces.substituting import fact_of

if TYPE_CHECKING:
    from kolm_build.attest.trust import TrustPolicy
    from kolm_build.store.claims import StoredRealisation
    from kolm_build.surfaces.hearing import Claimed


@dataclass(frozen=True, slots=True, order=True, kw_only=True)
class Answer:
    """What one place says of an output.

    Attributes:
        source: The place.
        content: The content.
        kind: The claim's type, or ``claimed`` where nobody signed it.
        who: The trusted principal, the key, or that nobody signed it.
    """

    source: str
    content: str
    kind: str
    who: str

    def to_value(self) -> dict[str, object]:
        """The plain value."""
        return {
            "source": self.source,
            "content": self.content,
            "type": self.kind,
            "who": self.who,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """What several places say of an output.

    Attributes:
        name: The output's label.
        unknown: The inputs whose content is not known, so that nobody could be asked.
        answers: What was said, each once, sorted by place.
    """

    name: str
    unknown: tuple[str, ...]
    answers: tuple[Answer, ...]

    @property
    def word(self) -> str:
        """``same``, ``differs`` or ``not compared``."""
        if len({one.content for one in self.answers}) > 1:
            return "differs"
        return "same" if len({one.source for one in self.answers}) > 1 else "not compared"

    def to_value(self) -> dict[str, object]:
        """The plain value."""
        return {
            "output": self.name,
            "verdict": self.word,
            "unknown_inputs": list(self.unknown),
            "answers": [one.to_value() for one in self.answers],
        }


def challenge_of(claimed: Claimed, trust: TrustPolicy | None) -> Challenge:
    """The comparison of everything that was heard of one output."""
    answers = {_answer(source, claim, trust) for source, claim in claimed.claims}
    return Challenge(name=claimed.name, unknown=claimed.unknown, answers=tuple(sorted(answers)))


def _answer(source: str, claim: StoredRealisation, trust: TrustPolicy | None) -> Answer:
    kind, who = "claimed", "nobody who signed"
    if claim.envelope is not None:
        kind, who = _signer(claim, claim.envelope, trust)
    return Answer(source=source, content=str(claim.realisation.content), kind=kind, who=who)


def _signer(
    claim: StoredRealisation, envelope: bytes, trust: TrustPolicy | None
) -> tuple[str, str]:
    """The claim's type, and whose signature it bears; what does not hold is said to be broken."""
    try:
        found, kind = opened(envelope, fact_of(claim))
    except SignatureError as error:
        return "claimed", f"a broken signature ({error.reason})"
    signature = found.signatures[0]
    known = trust.signer(signature.keyid) if trust else None
    if known is None:
        return kind, f"key {signature.keyid[:16]}"
    if not known[1].verifies(signature.sig, found.signed):
        return kind, f"a forgery in the name of {known[0].name}"
    return kind, known[0].name
