"""What is known of a claim: who signed it, when it was seen, what was committed to (spec/trust.md).

Signatures are checked here, and what they prove becomes a `Vote`, of which `core.quorum` decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256

from kolm_build.attest.claims import Fact, open_statement, opened, sign_statement
from kolm_build.attest.envelope import Envelope
from kolm_build.attest.keys import PublicKey, SigningKey
from kolm_build.attest.trust import BUILDER, LOG, Principal, TrustPolicy
from kolm_build.core.plain_blake3 import blake3
from kolm_build.core.quorum import Vote, parse_time
from kolm_build.core.statement import Statement, Subject
from kolm_build.errors import InvalidRecordError, SignatureError

WITNESSED = "urn:kolm:predicate:witnessed:1"
COMMITMENT = "urn:kolm:predicate:commitment:1"
EVIDENCE = "evidence"
NONCE_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundClaim:
    """A claim as it was found.

    Attributes:
        fact: What it is about.
        envelope: The signed statement; None where there is none.
        evidence: Envelopes of countersignatures and commitments, the latter with their nonce.
        machine: The digest of the machine's record; empty where there is none.
        platform: The machine's platform; empty where there is none.
    """

    fact: Fact
    envelope: bytes | None
    evidence: tuple[tuple[bytes, bytes | None], ...] = ()
    machine: str = ""
    platform: str = ""


def hear(claim: FoundClaim, trust: TrustPolicy) -> Vote:
    """What a claim is worth under `trust`; what is wrong with it is its objection."""
    try:
        return examine(claim, trust)
    except SignatureError as error:
        return _vote(claim, objection=error.reason)


def examine(claim: FoundClaim, trust: TrustPolicy) -> Vote:
    """The same.

    Raises:
        SignatureError: The envelope is malformed, about something else, or not by the trusted key
            that it names.
    """
    if claim.envelope is None:
        return _vote(claim, objection="not signed")
    envelope, kind = opened(claim.envelope, claim.fact)
    signature = envelope.signatures[0]
    known = trust.signer(signature.keyid)
    if known is None:
        objection = "signed by a key that the trust file does not have"
        return _vote(claim, kind=kind, keyid=signature.keyid, objection=objection)
    principal, key = known
    if not key.verifies(signature.sig, envelope.signed):
        raise SignatureError("a forged or damaged signature", actual=f"keyid {signature.keyid}")
    seen = seen_at(claim.envelope, claim, trust)
    objection = principal.window(key.keyid).objection(seen) or ""
    if BUILDER not in principal.roles:
        objection = f"{principal.name} does not have the role {BUILDER}"
    return _vote(
        claim,
        signer=principal.name,
        kind=kind,
        keyid=signature.keyid,
        seen=seen or "",
        committed=_committed_at(claim, key, trust) or "",
        objection=objection,
    )


def _vote(
    claim: FoundClaim,
    *,
    signer: str = "",
    kind: str = "",
    keyid: str = "",
    seen: str = "",
    committed: str = "",
    objection: str = "",
) -> Vote:
    return Vote(
        content=claim.fact.digests["content"],
        signer=signer,
        kind=kind,
        keyid=keyid,
        run=claim.fact.digests["circumstances"],
        machine=claim.machine,
        platform=claim.platform,
        seen=seen,
        committed=committed,
        objection=objection,
    )


# Countersignatures


def witness(envelope: bytes, *, time: str, key: SigningKey) -> bytes:
    """The envelope by which the log's `key` says that `envelope` was there at `time`."""
    return sign_statement(_witnessed(envelope, parse_time(time)), key)


def seen_at(envelope: bytes, claim: FoundClaim, trust: TrustPolicy) -> str | None:
    """The earliest time at which a trusted log has seen `envelope`; None where none has."""
    times = _times(envelope, claim, trust)
    return min(times, default=None)


def _times(envelope: bytes, claim: FoundClaim, trust: TrustPolicy) -> Iterator[str]:
    for piece, nonce in claim.evidence:
        time = None if nonce is not None else _time_of(piece, envelope, trust)
        if time is not None:
            yield time


def _time_of(piece: bytes, envelope: bytes, trust: TrustPolicy) -> str | None:
    """The time that the countersignature `piece` gives `envelope`; None where it gives none."""
    read = _read(piece, envelope)
    if read is None:
        return None
    found, time = read
    signature = found.signatures[0]
    known = trust.signer(signature.keyid)
    if known is None or LOG not in known[0].roles:
        return None
    if not known[1].verifies(signature.sig, found.signed):
        return None
    return time if _is_good(*known, time) else None


def _read(piece: bytes, envelope: bytes) -> tuple[Envelope, str] | None:
    """A countersignature of `envelope` and its time; None where it is none."""
    try:
        found, statement = open_statement(piece)
        time = parse_time(str(statement.predicate.get("time")))
    except (SignatureError, InvalidRecordError):
        return None
    return (found, time) if statement == _witnessed(envelope, time) else None


def is_witnessed(claim: FoundClaim, *, time: str, keyid: str) -> bool:
    """Whether the key `keyid` has countersigned `claim` for `time` or earlier, by its own word."""
    reads = (_read(piece, claim.envelope or b"") for piece, nonce in claim.evidence if not nonce)
    return any(
        read is not None and read[0].signatures[0].keyid == keyid and read[1] <= time
        for read in reads
    )


def _is_good(log: Principal, key: PublicKey, time: str) -> bool:
    """Whether a log's word counts; who has a stolen key writes any time, so a revoked one never."""
    window = log.window(key.keyid)
    return window.revoked is None and window.objection(time) is None


def _witnessed(envelope: bytes, time: str) -> Statement:
    subject = Subject(
        name=EVIDENCE, sha256=sha256(envelope).hexdigest(), blake3=blake3(envelope).hex()
    )
    return Statement(subjects=(subject,), predicate_type=WITNESSED, predicate={"time": time})


# Commitments


def commit(fact: Fact, *, nonce: bytes, key: SigningKey) -> bytes:
    """The envelope by which `key` commits to `fact` without telling its content.

    Args:
        fact: What will be claimed.
        nonce: `NONCE_BYTES` random bytes, secret until the claim is shown.
        key: Who will claim it.
    """
    return sign_statement(_committed(fact, key.public.keyid, nonce), key)


def _committed_at(claim: FoundClaim, key: PublicKey, trust: TrustPolicy) -> str | None:
    """The earliest time at which a commitment that opens for the claim was seen."""
    times = (
        seen_at(piece, claim, trust)
        for piece, nonce in claim.evidence
        if nonce is not None and _opens(piece, nonce, claim.fact, key)
    )
    return min((time for time in times if time is not None), default=None)


def _opens(piece: bytes, nonce: bytes, fact: Fact, key: PublicKey) -> bool:
    """Whether the commitment `piece` by `key` opens to `fact` with `nonce`."""
    try:
        found, statement = open_statement(piece)
    except SignatureError:
        return False
    return (
        len(nonce) == NONCE_BYTES
        and statement == _committed(fact, key.keyid, nonce)
        and key.verifies(found.signatures[0].sig, found.signed)
    )


def _committed(fact: Fact, keyid: str, nonce: bytes) -> Statement:
    resolved, content = fact.digests["resolved"], fact.digests["content"]
    lines = ("kolm commitment v1", resolved, fact.output, content, keyid, nonce.hex())
    text = "".join(f"{line}\n" for line in lines).encode()
    subject = Subject(name=fact.output, sha256=sha256(text).hexdigest(), blake3=blake3(text).hex())
    predicate = {"resolved": resolved, "output": fact.output}
    return Statement(subjects=(subject,), predicate_type=COMMITMENT, predicate=predicate)
