"""Substituters in use, and whom to believe there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from kolm_build.attest.claims import Fact, sign_claim
from kolm_build.attest.testimony import FoundClaim, examine, hear
from kolm_build.core import cbor
from kolm_build.core.digest import Digest
from kolm_build.core.quorum import BUILT, Verdict, decide
from kolm_build.engine.events import OnEvent, SubstituterTrouble
from kolm_build.errors import KolmError
from kolm_build.store.remote.place import Limits
from kolm_build.store.remote.substitutes import Belief, Judge, Substitutes
from kolm_build.surfaces.addresses import place_at

if TYPE_CHECKING:
    from kolm_build.attest.keys import SigningKey
    from kolm_build.attest.trust import TrustPolicy
    from kolm_build.store.claims import StoredRealisation
    from kolm_build.store.local import LocalStore
    from kolm_build.surfaces.terminal import Terminal


@contextmanager
def open_substitutes(
    urls: Sequence[str],
    store: LocalStore,
    *,
    trust: TrustPolicy | None,
    on_event: OnEvent,
    limits: Limits | None = None,
) -> Iterator[Substitutes | None]:
    """The substituters at `urls`; None where there are none.

    Args:
        urls: Their addresses.
        store: Where to bring things.
        trust: Whom to believe; nobody where it is None.
        on_event: Told what goes wrong.
        limits: How patient to be.
    """
    limits = limits or Limits()
    if not urls:
        yield None
        return

    def tell(url: str, error: KolmError) -> None:
        on_event(SubstituterTrouble(url=url, error=error))

    those = Substitutes(
        places=[place_at(url, limits) for url in urls],
        store=store,
        judge=judge_of(trust),
        decide=lambda claims: believed(claims, trust),
        limits=limits,
        on_trouble=tell,
    )
    try:
        yield those
    finally:
        those.close()


def judge_of(trust: TrustPolicy | None) -> Judge:
    """Tells which trusted builder vouches for a claim."""

    def judge(claim: StoredRealisation) -> str | None:
        if trust is None or claim.envelope is None:
            return None
        vote = examine(found_claim(claim), trust)
        return vote.signer if vote.is_valid else None

    return judge


def believed(claims: Sequence[StoredRealisation], trust: TrustPolicy | None) -> Belief:
    """Which content of one output to believe in, if any, and whether there is an alarm."""
    if trust is None:
        return Belief()
    verdict = verdict_of(claims, trust)
    usable = None if verdict.usable is None else Digest.parse(verdict.usable)
    rivals = tuple(map(Digest.parse, verdict.counts)) if verdict.is_contested else ()
    return Belief(content=usable, contested=rivals)


def verdict_of(claims: Sequence[StoredRealisation], trust: TrustPolicy) -> Verdict:
    """The verdict on `claims`, which are about one output."""
    return decide(trust.quorum, (hear(found_claim(claim), trust) for claim in claims))


def found_claim(claim: StoredRealisation) -> FoundClaim:
    """What there is to be judged of a claim."""
    machine = claim.circumstances.get("machine")
    record = machine if isinstance(machine, Mapping) else {}
    return FoundClaim(
        fact=fact_of(claim),
        envelope=claim.envelope,
        evidence=claim.evidence,
        machine=str(Digest.of_blob(cbor.encode(dict(record)))) if record else "",
        platform=str(record.get("platform") or ""),
    )


def fact_of(claim: StoredRealisation) -> Fact:
    """What a signature of `claim` is about."""
    made = claim.realisation
    circumstances = Digest.of_blob(cbor.encode(dict(claim.circumstances)))
    digests = {
        "resolved": made.resolved,
        "content": made.content,
        "derivation": claim.derivation,
        "circumstances": circumstances,
    }
    return Fact(
        record=made.encode(),
        output=made.output,
        digests={name: str(digest) for name, digest in digests.items()},
    )


def signed(
    claim: StoredRealisation, key: SigningKey | None, kind: str = BUILT
) -> StoredRealisation:
    """`claim`, signed by `key` as `kind`; as it is if somebody signed it, or there is no key."""
    if key is None or claim.envelope is not None:
        return claim
    return replace(claim, envelope=sign_claim(fact_of(claim), kind=kind, key=key))


def warn_of_no_trust(trust: TrustPolicy | None, terminal: Terminal) -> None:
    """Say what it means to trust nobody."""
    if trust is None:
        terminal.tell(
            "no trust file: of substituters only what the lock fixes by digest is used "
            "(`kolm key trust` makes one)",
            "yellow",
        )
