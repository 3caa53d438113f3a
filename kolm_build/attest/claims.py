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
from kolm_build.core.plain_blake3 import blake3
from kolm_build.core.quorum import TYPES
from kolm_build.core.statement import PAYLOAD_TYPE, Statement, Subject
from kolm_build.errors import InvalidRecordError, SignatureError

PREDICATE = "urn:kolm:predicate:realisation:1"


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
    return sign_statement(fact.statement(kind), key)


def opened(envelope: bytes, fact: Fact) -> tuple[Envelope, str]:
    """The envelope of a claim about `fact`, and the claim's type; the signature is not checked.

    Raises:
        SignatureError: The envelope is malformed, or about something else.
    """
    found, statement = open_statement(envelope)
    kind = statement.predicate.get("type")
    if kind not in TYPES or statement != fact.statement(str(kind)):
        raise SignatureError(
            "a statement about something else",
            expected=f"{PREDICATE} of {fact.digests['resolved']}",
            actual=ascii(statement.predicate_type)[:80],
        )
    return found, str(kind)


def open_statement(envelope: bytes) -> tuple[Envelope, Statement]:
    """An envelope with one signature over a statement, and that.

    Raises:
        SignatureError: It is not one.
    """
    try:
        found = Envelope.decode(envelope)
        if len(found.signatures) != 1 or found.payload_type != PAYLOAD_TYPE:
            raise SignatureError("not one signature over a statement")
        return found, Statement.decode(found.payload)
    except InvalidRecordError as error:
        raise SignatureError(error.reason, where=error.where, actual=error.actual) from None


def sign_statement(statement: Statement, key: SigningKey) -> bytes:
    """The envelope by which `key` makes `statement`; the same bytes every time."""
    payload = statement.encode()
    signature = Signature(keyid=key.public.keyid, sig=key.sign(pae(PAYLOAD_TYPE, payload)))
    return Envelope(payload_type=PAYLOAD_TYPE, payload=payload, signatures=(signature,)).encode()
