"""Envelopes: what is signed, how an envelope is spelled, and spellings that are refused."""

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kolm_build.attest.attestation import Digests, statement_of
from kolm_build.attest.envelope import Envelope, Signature, pae
from kolm_build.attest.keys import PublicKey
from kolm_build.core.manifest import Manifest
from kolm_build.core.statement import PAYLOAD_TYPE

_SEEDS = (bytes(32), bytes(range(32)))
_WEAK = (0, 1, 2**255 - 20, 2**255 - 19, 2**255 - 18, 2**255 + 1)
_MANIFEST = Manifest(
    name="tiny",
    members=(),
    weights_id="b3:" + "0" * 64,
    numerics="native-1",
    licence="Apache-2.0",
    kscore={"k": "0.9000"},
)


def _signed(seed: bytes, payload: bytes) -> dict[str, str]:
    private = Ed25519PrivateKey.from_private_bytes(seed)
    public = PublicKey(private.public_key().public_bytes_raw())
    signed = pae(PAYLOAD_TYPE, payload)
    signature = Signature(keyid=public.keyid, sig=private.sign(signed))
    envelope = Envelope(payload_type=PAYLOAD_TYPE, payload=payload, signatures=(signature,))
    return {
        "seed": seed.hex(),
        "public": str(public),
        "keyid": public.keyid,
        "payload": payload.decode(),
        "signed": signed.hex(),
        "envelope": envelope.encode().decode(),
    }


def vectors() -> dict[str, object]:
    manifest = _MANIFEST.encode()
    statement = statement_of("built", _MANIFEST, Digests.of(manifest)).encode()
    good = _signed(_SEEDS[0], b"{}")["envelope"]
    return {
        "manifest": manifest.decode(),
        "signed": [_signed(seed, payload) for seed in _SEEDS for payload in (b"{}", statement)],
        "refused": [
            good + " ",
            good.replace(":", ": ", 1),
            good.replace('"payload":"e30="', '"payload":"e30"'),
            good.replace('"payload":"e30="', '"payload":"e31="'),
            good.replace('"payload":"e30="', '"payload":"e3\\n0="'),
            good.replace('"payload":"e30="', '"payload":"e30=","payload":"e30="'),
            good.replace('"signatures":[', '"signatures":[],"x":['),
            good[: good.index('"signatures":[')] + '"signatures":[]}',
        ],
        "weak_keys": [(number % 2**256).to_bytes(32, "little").hex() for number in _WEAK],
    }
