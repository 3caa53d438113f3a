"""Signed claims: that a builder made this content of that derivation (spec/attest.md).

A claim is comparable byte for byte, whoever makes it and whenever: there is no clock in it, and
what happened around the build enters by its digest alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

from kolm_build.attest.envelope import Envelope, Signature, pae
from kolm_build.attest.keys import SigningKey
from kolm_build.attest.trust import TrustPolicy
from kolm_build.core.plain_blake3 import blake3
from kolm_build.core.statement import PAYLOAD_TYPE, Statement, Subject
from kolm_build.errors import InvalidRecordError, SignatureError

PREDICATE = "urn:kolm:predicate:realisation:1"
BUILT, REBUILT, COPIED = "built", "rebuilt", "copied"
TYPES = (BUILT, REBUILT, COPIED)
ROLE = "builder"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """What a claim is about.

    Attributes:
        record: The realisation's canonical bytes.
        output: The output's name.
        digests: The digests that the predicate names, as text: `resolved`, `content`,
            `derivation` and `circumstances`.
    """

    record: bytes
    output: str
    digests: Mapping[str, str]

    def statement(self, kind: str) -> Statement:
        """The statement that says so; `kind` is one of `TYPES`."""
        subject = Subject(
            name=self.output,
            sha256=sha256(self.record).hexdigest(),
            blake3=blake3(self.record).hex(),
        )
        predicate = {"type": kind, "output": self.output, **self.digests}
        return Statement(subjects=(subject,), predicate_type=PREDICATE, predicate=predicate)


def sign_claim(fact: Fact, *, kind: str, key: SigningKey) -> bytes:
    """The envelope by which `key` claims `fact`; the same bytes every time."""
    payload = fact.statement(kind).encode()
    signature = Signature(keyid=key.public.keyid, sig=key.sign(pae(PAYLOAD_TYPE, payload)))
    return Envelope(payload_type=PAYLOAD_TYPE, payload=payload, signatures=(signature,)).encode()


def builder_of(envelope: bytes, fact: Fact, trust: TrustPolicy) -> str | None:
    """The trusted builder who claims to have built `fact`.

    Returns:
        The principal's name; None where it is nobody's that is trusted, or a mere copy.

    Raises:
        SignatureError: The envelope is malformed, about something else, or not by the trusted key
            that it names.
    """
    try:
        opened = Envelope.decode(envelope)
        if len(opened.signatures) != 1 or opened.payload_type != PAYLOAD_TYPE:
            raise SignatureError("not one signature over a statement")
        found = Statement.decode(opened.payload)
    except InvalidRecordError as error:
        raise SignatureError(error.reason, where=error.where, actual=error.actual) from None
    kind = found.predicate.get("type")
    if kind not in TYPES or found != fact.statement(str(kind)):
        raise SignatureError(
            "a statement about something else",
            expected=f"{PREDICATE} of {fact.digests['resolved']}",
            actual=ascii(found.predicate_type)[:80],
        )
    signature = opened.signatures[0]
    known = trust.signer(signature.keyid)
    if known is None:
        return None
    principal, key = known
    if not key.verifies(signature.sig, opened.signed):
        raise SignatureError("a forged or damaged signature", actual=f"keyid {signature.keyid}")
    return principal.name if ROLE in principal.roles and kind != COPIED else None
