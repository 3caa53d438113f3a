"""Attestations in an artifact: signed statements about its manifest (spec/attest.md).

One file a key and statement, named after both. It is the same bytes whenever it is made: Ed25519
is deterministic, the statement is canonical, and there is no clock.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Self

from kolm_build.attest.container import Container, as_verification
from kolm_build.attest.envelope import Envelope, Signature, pae
from kolm_build.attest.keys import SigningKey
from kolm_build.attest.trust import STATEMENTS, TrustPolicy
from kolm_build.core.archive import ATTESTATIONS
from kolm_build.core.manifest import FORMAT, Manifest
from kolm_build.core.plain_blake3 import blake3
from kolm_build.core.statement import PAYLOAD_TYPE, Statement, Subject
from kolm_build.errors import InvalidRecordError, SignatureError, UntrustedError

_PATH = re.compile(
    re.escape(ATTESTATIONS) + "(" + "|".join(STATEMENTS.values()) + r")\.([0-9a-f]{16})\.dsse\.json"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """An attestation that is in order.

    Attributes:
        statement: What it says: a value of `STATEMENTS`.
        keyid: The key that it says signed it.
        signer: The principal whose key did; None where the key is nobody's that is trusted.
        counts: Whether that principal has the role for this statement, and the key is good at any
            time.
    """

    statement: str
    keyid: str
    signer: str | None
    counts: bool

    def to_value(self) -> dict[str, object]:
        """The plain value."""
        return {
            "statement": self.statement,
            "keyid": self.keyid,
            "signer": self.signer,
            "counts": self.counts,
        }


def attestation_path(statement: str, keyid: str) -> str:
    """The path of the attestation of the kind `statement` by the key `keyid`."""
    return f"{ATTESTATIONS}{statement}.{keyid[:16]}.dsse.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Digests:
    """What a statement names its subject by: the hex digests of a manifest.

    Attributes:
        sha256: Its SHA-256, the artifact's id.
        b3: Its BLAKE3.
    """

    sha256: str
    b3: str

    @classmethod
    def of(cls, manifest: bytes) -> Self:
        """The digests of the bytes of ``manifest.json``."""
        return cls(sha256=sha256(manifest).hexdigest(), b3=blake3(manifest).hex())


def statement_of(kind: str, manifest: Manifest, digests: Digests) -> Statement:
    """The statement of `kind` about the artifact with `manifest`."""
    return Statement(
        subjects=(Subject(name=manifest.name, sha256=digests.sha256, blake3=digests.b3),),
        predicate_type=f"urn:kolm:predicate:{kind}:1",
        predicate={"artifact": FORMAT},
    )


def make_attestation(container: Container, *, key: SigningKey, role: str) -> tuple[str, bytes]:
    """The path and bytes of the attestation by which `key`, in `role`, vouches for an artifact."""
    kind = STATEMENTS[role]
    statement = statement_of(kind, container.manifest, Digests.of(container.manifest_bytes))
    payload = statement.encode()
    keyid = key.public.keyid
    envelope = Envelope(
        payload_type=PAYLOAD_TYPE,
        payload=payload,
        signatures=(Signature(keyid=keyid, sig=key.sign(pae(PAYLOAD_TYPE, payload))),),
    )
    return attestation_path(kind, keyid), envelope.encode()


def check_attestations(
    attestations: Mapping[str, bytes],
    manifest: Manifest,
    digests: Digests,
    trust: TrustPolicy | None,
) -> tuple[Signed, ...]:
    """Every attestation of an artifact, each in order.

    Args:
        attestations: Their bytes by path.
        manifest: The artifact's manifest.
        digests: What they have to name it by.
        trust: Whose signatures to check; the others are listed.

    Raises:
        SignatureError: One is malformed, misnamed, about something else, or not by the trusted
            key it names.
    """
    found = []
    for path, data in attestations.items():
        try:
            match = _PATH.fullmatch(path)
            if not match:
                raise SignatureError("not the name of an attestation")
            want = statement_of(match[1], manifest, digests)
            signed = _check(match[1], Envelope.decode(data), want, trust)
            if path != attestation_path(signed.statement, signed.keyid):
                raise SignatureError("named after another key", actual=signed.keyid)
        except InvalidRecordError as error:
            raise as_verification(error, SignatureError).in_file(path) from None
        except SignatureError as error:
            raise error.in_file(path) from None
        found.append(signed)
    return tuple(found)


def check_thresholds(found: Iterable[Signed], trust: TrustPolicy) -> None:
    """Refuse an artifact that too few trusted principals vouch for.

    Raises:
        UntrustedError: A threshold is not met.
    """
    for shortfall in shortfalls(tuple(found), trust):
        raise shortfall


def shortfalls(signed: Sequence[Signed], trust: TrustPolicy) -> Iterator[UntrustedError]:
    """What says that a threshold is not met, for each that is not."""
    for role, threshold in trust.thresholds.items():
        kind = STATEMENTS[role]
        names = {each.signer for each in signed if each.counts and each.statement == kind}
        if len(names) < threshold:
            yield UntrustedError(
                f"too few principals with the role {role} vouch for it",
                expected=f"{threshold} of " + ", ".join(_names(trust, role)),
                actual=", ".join(sorted(map(str, names))) or _others(signed),
                advice="Sign it with a key of the trust file, or trust the key that signed it.",
            )


def why_not(signed: Signed, trust: TrustPolicy) -> str:
    """Why an attestation does not count; empty where it does."""
    if signed.counts:
        return ""
    known = trust.signer(signed.keyid)
    if known is None:
        return "the trust file does not have this key"
    if not known[0].window(signed.keyid).is_open:
        return known[0].window(signed.keyid).objection(None) or ""
    return f"{known[0].name} has no role that may say {signed.statement!r}"


def _check(kind: str, envelope: Envelope, want: Statement, trust: TrustPolicy | None) -> Signed:
    """The attestation in `envelope`, which has to hold the statement `want`."""
    if len(envelope.signatures) != 1 or envelope.payload_type != PAYLOAD_TYPE:
        raise SignatureError(
            "not one signature over a statement",
            expected=PAYLOAD_TYPE,
            actual=f"{len(envelope.signatures)} over {ascii(envelope.payload_type)[:80]}",
        )
    found = Statement.decode(envelope.payload)
    if found != want:
        raise SignatureError(
            "a statement about something else", expected=_shown(want), actual=_shown(found)
        )
    signature = envelope.signatures[0]
    known = trust.signer(signature.keyid) if trust else None
    if known and not known[1].verifies(signature.sig, envelope.signed):
        raise SignatureError("a forged or damaged signature", actual=f"keyid {signature.keyid}")
    return Signed(
        statement=kind,
        keyid=signature.keyid,
        signer=known[0].name if known else None,
        counts=known is not None
        and any(STATEMENTS[role] == kind for role in known[0].roles)
        # Nothing in an artifact says when it was signed, so a key with a window does not count.
        and known[0].window(signature.keyid).is_open,
    )


def _shown(statement: Statement) -> str:
    subject = statement.subjects[0]
    return f"{statement.predicate_type} of {subject.name}, sha256:{subject.sha256}"


def _names(trust: TrustPolicy, role: str) -> list[str]:
    return [principal.name for principal in trust.principals if role in principal.roles]


def _others(signed: Iterable[Signed]) -> str:
    keyids = ", ".join(each.keyid[:16] for each in signed)
    return f"signed only by other keys or in other roles: {keyids}" if keyids else "not signed"
