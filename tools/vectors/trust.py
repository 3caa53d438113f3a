"""Claims, countersignatures and commitments, as they are signed."""

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kolm_build.attest.claims import Fact, sign_claim
from kolm_build.attest.envelope import Envelope
from kolm_build.attest.keys import PublicKey, SigningKey
from kolm_build.attest.testimony import commit, witness
from kolm_build.core.digest import Digest
from kolm_build.core.quorum import TYPES
from kolm_build.core.realisation import Realisation

_BUILDER, _LOG = bytes(32), bytes(range(32))
_NONCE = bytes(range(32, 64))
_TIME = "2026-01-31T12:00:00Z"


def _key(seed: bytes) -> SigningKey:
    private = Ed25519PrivateKey.from_private_bytes(seed)
    return SigningKey(PublicKey(private.public_key().public_bytes_raw()), private.sign)


def _shown(envelope: bytes) -> dict[str, str]:
    return {
        "envelope": envelope.decode(),
        "payload": Envelope.decode(envelope).payload.decode(),
    }


def vectors() -> dict[str, object]:
    parts = ("resolved", "content", "derivation", "circumstances")
    digests = {name: Digest.of_blob(name.encode()) for name in parts}
    record = Realisation(
        resolved=digests["resolved"], output="out", content=digests["content"]
    ).encode()
    texts = {name: str(digest) for name, digest in digests.items()}
    fact = Fact(record=record, output="out", digests=texts)
    claims = {kind: sign_claim(fact, kind=kind, key=_key(_BUILDER)) for kind in TYPES}
    commitment = commit(fact, nonce=_NONCE, key=_key(_BUILDER))
    return {
        "builder": {"seed": _BUILDER.hex(), "keyid": _key(_BUILDER).public.keyid},
        "log": {"seed": _LOG.hex(), "keyid": _key(_LOG).public.keyid},
        "record": record.hex(),
        "digests": texts,
        "nonce": _NONCE.hex(),
        "time": _TIME,
        "claims": {kind: _shown(claim) for kind, claim in claims.items()},
        "commitment": _shown(commitment),
        "witness_of_built": _shown(witness(claims["built"], time=_TIME, key=_key(_LOG))),
        "witness_of_commitment": _shown(witness(commitment, time=_TIME, key=_key(_LOG))),
    }
