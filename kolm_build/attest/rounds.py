"""The cryptography of a federated round: signed messages, agreed seeds, sealed shares.

K. Bonawitz et al., Practical secure aggregation for privacy-preserving machine learning, CCS 2017,
figure 4, the protocol against active parties: X25519 for both key agreements, HKDF-SHA256 and
ChaCha20-Poly1305 for what follows from them, Ed25519 for what is said (FED-32 to FED-37).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Self

from kolm_build.attest.envelope import Envelope, Signature, pae
from kolm_build.attest.keys import PublicKey, SigningKey
from kolm_build.core import cbor
from kolm_build.core.fields import Fields
from kolm_build.errors import InvalidRecordError, SubmissionError

MESSAGE_TYPE = "application/vnd.kolm.federated+cbor"
KEY_BYTES = 32

_PAIR = "kolm_build 2026 federated pair v1"
_SHARE = "kolm_build 2026 federated share v1"
_OWN = b"kolm_build 2026 federated own mask v1\n"
_ONCE = bytes(12)
"""The nonce of a cipher whose key is used once."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """An X25519 key pair of one round.

    Attributes:
        private: The secret scalar, 32 bytes.
        public: The public key, 32 bytes.
    """

    private: bytes
    public: bytes

    @classmethod
    def of(cls, private: bytes) -> Self:
        """The pair of a secret scalar: 32 random bytes."""
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

        key = X25519PrivateKey.from_private_bytes(private)
        return cls(private, key.public_key().public_bytes_raw())


def pair_seed(own: KeyPair, other: bytes, *, round_id: bytes, names: tuple[str, str]) -> bytes:
    """The seed of the mask that two sites share; the same from both sides (FED-32).

    Args:
        own: The mask key of one of them.
        other: The public mask key of the other.
        round_id: The round's id.
        names: Both sites' names, in any order.
    """
    return _agreed(own, other, [_PAIR, round_id, *sorted(names)])


def commitment(seed: bytes) -> bytes:
    """What a site says of its own mask's seed before anybody may see it (FED-33)."""
    return sha256(_OWN + seed).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """What a site entrusts to another.

    Attributes:
        mask: A share of its mask key.
        own: A share of its own mask's seed.
    """

    mask: bytes
    own: bytes

    def seal(
        self, own: KeyPair, other: bytes, *, round_id: bytes, sender: str, receiver: str
    ) -> bytes:
        """The shares, readable by `receiver` alone (FED-35)."""
        key = _agreed(own, other, [_SHARE, round_id, sender, receiver])
        made: bytes = _cipher(key).encrypt(_ONCE, cbor.encode([self.mask, self.own]), round_id)
        return made

    @classmethod
    def open(
        cls, data: bytes, own: KeyPair, other: bytes, *, round_id: bytes, sender: str, receiver: str
    ) -> Self:
        """The inverse of `seal`, by the receiver.

        Raises:
            SubmissionError: They were not sealed by `sender` for `receiver` in this round.
        """
        from cryptography.exceptions import InvalidTag

        key = _agreed(own, other, [_SHARE, round_id, sender, receiver])
        try:
            value = cbor.decode(_cipher(key).decrypt(_ONCE, data, round_id))
        except (InvalidTag, InvalidRecordError):
            value = None
        match value:
            case [bytes(mask), bytes(own_mask)]:
                return cls(mask=mask, own=own_mask)
            case _:
                reason = "shares that were not sealed for this site"
                raise SubmissionError(reason, where=sender)


def _agreed(own: KeyPair, other: bytes, purpose: Sequence[object]) -> bytes:
    """32 bytes that the holders of two X25519 keys have in common, for one purpose."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    try:
        theirs = X25519PublicKey.from_public_bytes(other)
        shared = X25519PrivateKey.from_private_bytes(own.private).exchange(theirs)
    except ValueError as error:
        raise SubmissionError("a weak key of a round", actual=other.hex()) from error
    info = cbor.encode(list(purpose))
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(shared)


def _cipher(key: bytes):  # type: ignore[no-untyped-def]  # noqa: ANN202 -- imported late
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    return ChaCha20Poly1305(key)


# Signed messages


def sign_message(kind: str, body: Mapping[str, object], key: SigningKey) -> bytes:
    """An envelope by which `key` says `body`; the same bytes every time (FED-36)."""
    payload = cbor.encode({"kind": kind, **body})
    signature = Signature(keyid=key.public.keyid, sig=key.sign(pae(MESSAGE_TYPE, payload)))
    return Envelope(payload_type=MESSAGE_TYPE, payload=payload, signatures=(signature,)).encode()


def open_message(data: bytes, kind: str, key: PublicKey, *, who: str) -> Fields:
    """What an envelope says, its signature checked against `key`.

    Raises:
        SubmissionError: It is malformed, of another kind, or not by that key.
    """
    try:
        found = Envelope.decode(data)
        fields = Fields(cbor.decode(found.payload))
        said = fields.text("kind")
    except InvalidRecordError as error:
        raise SubmissionError("not a signed message", where=who, actual=error.reason) from None
    signature = found.signatures[0]
    if found.payload_type != MESSAGE_TYPE or said != kind or len(found.signatures) != 1:
        raise SubmissionError("a message about something else", where=who, expected=kind)
    if signature.keyid != key.keyid or not key.verifies(signature.sig, found.signed):
        raise SubmissionError(
            "a message by another key than this site's",
            where=who,
            expected=f"keyid {key.keyid}",
            actual=f"keyid {signature.keyid}",
        )
    return fields
