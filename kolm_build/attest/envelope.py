"""DSSE envelopes, strictly: a payload, its type, and signatures over both (spec/attest.md).

DSSE signs bytes, so nothing here depends on how a payload is spelled; the envelope itself has one
spelling, canonical JSON with canonical base64, so that no byte of it can change unnoticed.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Self

from kolm_build.core import strict_json
from kolm_build.core.fields import Fields
from kolm_build.errors import InvalidRecordError

MAX_BYTES = 1 << 24
MAX_SIGNATURES = 16


@dataclass(frozen=True, slots=True, order=True, kw_only=True)
class Signature:
    """One signature of an envelope.

    Attributes:
        keyid: The SHA-256 of the key's SubjectPublicKeyInfo: a hint, never a reason to trust.
        sig: The signature's bytes.
    """

    keyid: str
    sig: bytes

    def to_value(self) -> dict[str, object]:
        """The plain value."""
        return {"keyid": self.keyid, "sig": _base64(self.sig)}

    @classmethod
    def from_value(cls, value: object) -> Self:
        """The inverse of `to_value`, strict."""
        fields = Fields(value)
        made = cls(keyid=fields.parsed("keyid", _keyid), sig=fields.parsed("sig", _unbase64))
        fields.done()
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A signed payload.

    Attributes:
        payload_type: The media type of the payload; it is signed too.
        payload: The signed bytes.
        signatures: One or more, each by another key.

    Raises:
        InvalidRecordError: There are no signatures, too many, or two under one keyid.
    """

    payload_type: str
    payload: bytes
    signatures: tuple[Signature, ...]

    def __post_init__(self) -> None:
        count = len(self.signatures)
        if not 1 <= count <= MAX_SIGNATURES:
            raise InvalidRecordError(
                "wrong number of signatures",
                where="signatures",
                expected=f"1 to {MAX_SIGNATURES}",
                actual=str(count),
            )
        if len({signature.keyid for signature in self.signatures}) != count:
            raise InvalidRecordError("two signatures under one keyid", where="signatures")

    @property
    def signed(self) -> bytes:
        """What the signatures are over: DSSE's pre-authentication encoding."""
        return pae(self.payload_type, self.payload)

    def encode(self) -> bytes:
        """The one spelling of the envelope: canonical JSON."""
        return strict_json.dumps(
            {
                "payload": _base64(self.payload),
                "payloadType": self.payload_type,
                "signatures": [signature.to_value() for signature in self.signatures],
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The inverse of `encode`, strict.

        Raises:
            InvalidRecordError: `data` is not what `encode` writes for some envelope.
        """
        if len(data) > MAX_BYTES:
            raise InvalidRecordError("an envelope is too large", actual=f"{len(data)} bytes")
        fields = Fields(strict_json.loads(data))
        made = cls(
            payload_type=fields.text("payloadType"),
            payload=fields.parsed("payload", _unbase64),
            signatures=fields.records("signatures", Signature.from_value),
        )
        fields.done()
        if made.encode() != data:
            raise InvalidRecordError("an envelope that is not canonical JSON")
        return made


def pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: what is signed, both parts with their lengths."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _unbase64(text: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        data = b""
    if _base64(data) != text:
        raise InvalidRecordError("not canonical base64", actual=ascii(text)[:80])
    return data


def _keyid(text: str) -> str:
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise InvalidRecordError("not a keyid", expected="64 hex digits", actual=ascii(text)[:80])
    return text
