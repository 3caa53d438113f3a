"""Attestations in an artifact: signed statements about its manifest (spec/attest.md).

One file a key and statement, named after both. It is the same bytes whenever it is made: Ed25519
is deterministic, the statement is canonical, and there is no clock.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256

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
        counts: Whether that principal has the role for this statement.
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


def statement_of(kind: str, manifest: Manifest, manifest_digests: tuple[str, str]) -> Statement:
    """The statement of `kind` about the artifact with `manifest` and its (SHA-256, BLAKE3)."""
    sha256_hex, b3_hex = manifest_digests
    return Statement(
        subjects=(Subject(name=manifest.name, sha256=sha256_hex, blake3=b3_hex),),
        predicate_type=f"urn:kolm:predicate:{kind}:1",
        predicate={"artifact": FORMAT},
    )


def digests(manifest: bytes) -> tuple[str, str]:
    """The hex SHA-256 and BLAKE3 of a manifest's bytes."""
    return sha256(manifest).hexdigest(), blake3(manifest).hex()


def make_attestation(container: Container, *, key: SigningKey, role: str) -> tuple[str, bytes]:
    """The path and bytes of the attestation by which `key`, in `role`, vouches for an artifact."""
    kind = STATEMENTS[role]
    statement = statement_of(kind, container.manifest, digests(container.manifest_bytes))
    payload = statement.encode()
    keyid = key.public.keyid
    envelope = Envelope(
        payload_type=PAYLOAD_TYPE,
        payload=payload,
        signatures=(Signature(keyid=keyid, sig=key.sign(pae(PAYLOAD_TYPE, payload))),),
    )
    return attestation_path(kind, keyid), envelope.encode()


def check_attestations(container: Container, trust: TrustPolicy | None) -> tuple[Signed, ...]:
    """Every attestation of the artifact, each in order.

    Raises:
        SignatureError: One is malformed, misnamed, about something else, or not by the trusted
            key it names.
    """
    found = []
    want = digests(container.manifest_bytes)
    for path in container.attestations:
        try:
            found.append(_check(container, path, want, trust))
        except InvalidRecordError as error:
            raise as_verification(error, SignatureError).in_file(path) from None
        except SignatureError as error:
            raise error.in_file(path) from None
    return tuple(found)


def check_thresholds(found: Iterable[Signed], trust: TrustPolicy) -> None:
    """Refuse an artifact that too few trusted principals vouch for.

    Raises:
        UntrustedError: A threshold is not met.
    """
    signed = tuple(found)
    for role, threshold in trust.thresholds.items():
        kind = STATEMENTS[role]
        names = {each.signer for each in signed if each.counts and each.statement == kind}
        if len(names) < threshold:
            raise UntrustedError(
                f"too few principals with the role {role} vouch for it",
                expected=f"{threshold} of " + ", ".join(_names(trust, role)),
                actual=", ".join(sorted(map(str, names))) or _others(signed),
                advice="Sign it with a key of the trust file, or trust the key that signed it.",
            )


def _check(
    container: Container, path: str, want: tuple[str, str], trust: TrustPolicy | None
) -> Signed:
    match = _PATH.fullmatch(path)
    if not match:
        raise SignatureError("not the name of an attestation")
    kind, short = match.groups()
    envelope = Envelope.decode(container.attestation(path))
    if len(envelope.signatures) != 1 or envelope.payload_type != PAYLOAD_TYPE:
        raise SignatureError(
            "not one signature over a statement",
            expected=PAYLOAD_TYPE,
            actual=f"{len(envelope.signatures)} over {ascii(envelope.payload_type)[:80]}",
        )
    statement = Statement.decode(envelope.payload)
    if statement != statement_of(kind, container.manifest, want):
        raise SignatureError(
            "a statement about something else",
            expected=f"{kind}, sha256:{want[0]}",
            actual=f"{statement.predicate_type}, sha256:{statement.subjects[0].sha256}",
        )
    signature = envelope.signatures[0]
    if not signature.keyid.startswith(short):
        raise SignatureError("named after another key", actual=signature.keyid)
    known = trust.signer(signature.keyid) if trust else None
    if known and not known[1].verifies(signature.sig, envelope.signed):
        raise SignatureError("a forged or damaged signature", actual=f"keyid {signature.keyid}")
    return Signed(
        statement=kind,
        keyid=signature.keyid,
        signer=known[0].name if known else None,
        counts=known is not None and any(STATEMENTS[role] == kind for role in known[0].roles),
    )


def _names(trust: TrustPolicy, role: str) -> list[str]:
    return [principal.name for principal in trust.principals if role in principal.roles]


def _others(signed: Iterable[Signed]) -> str:
    keyids = ", ".join(each.keyid[:16] for each in signed)
    return f"signed only by other keys or in other roles: {keyids}" if keyids else "not signed"
