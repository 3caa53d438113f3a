"""DSSE envelopes: one spelling, and what another library says of it (spec/attest.md)."""

from __future__ import annotations

import base64
import json
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kolm_build.attest.envelope import Envelope, Signature, pae
from kolm_build.attest.keys import PublicKey
from kolm_build.errors import InvalidRecordError
from tests.attest.helping import key

VECTORS = json.loads((Path(__file__).parents[2] / "spec/vectors/dsse.json").read_text())
TYPE = "application/vnd.in-toto+json"


def envelope(payload: bytes = b"{}", *numbers: int) -> Envelope:
    signatures = tuple(
        Signature(keyid=key(number).public.keyid, sig=key(number).sign(pae(TYPE, payload)))
        for number in numbers or (1,)
    )
    return Envelope(payload_type=TYPE, payload=payload, signatures=signatures)


@given(st.binary(max_size=200))
def test_an_envelope_reads_back(payload):
    """DSSE-1."""
    made = envelope(payload, 1, 2)
    assert Envelope.decode(made.encode()) == made


@given(st.text(max_size=30), st.binary(max_size=100))
def test_another_library_signs_the_same_bytes(kind, payload):
    """DSSE-2."""
    from securesystemslib.dsse import Envelope as Theirs

    assert Theirs(payload, kind, {}).pae() == pae(kind, payload)


def test_another_library_verifies_the_envelope():
    """DSSE-1, DSSE-2."""
    from securesystemslib.dsse import Envelope as Theirs
    from securesystemslib.signer import SSlibKey

    public = key(1).public
    theirs = SSlibKey(public.keyid, "ed25519", "ed25519", {"public": public.raw.hex()})
    found = Theirs.from_dict(json.loads(envelope().encode()))
    assert found.verify([theirs], 1)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"payload":"e30="', b'"payload":"e30"'),
        (b'"payload":"e30="', b'"payload":"e31="'),
        (b'"payload":"e30="', b'"payload":"e 30="'),
        (b'"payload":"e30="', b'"payload":"e\\u00330="'),
        (b'"payload":"e30="', b'"payload":7'),
        (b'"payload":"e30="', b'"payload":"e30=","payload":"e30="'),
        (b'{"payload"', b' {"payload"'),
        (b'{"payload"', b'\xef\xbb\xbf{"payload"'),
        (b'{"payload"', b'{"more":1,"payload"'),
        (b'"keyid":"', b'"keyid":"A'),
        (b'"keyid"', b'"alg":"none","keyid"'),
        (b"}]}", b"}]} "),
        (b"}]}", b"}]}{}"),
        (b"}]}", b"}],}"),
    ],
)
def test_another_spelling_is_refused(old, new):
    """DSSE-1; cases 13, 18 and 23 of the threat model."""
    good = envelope().encode()
    assert old in good
    with pytest.raises(InvalidRecordError):
        Envelope.decode(good.replace(old, new, 1))


def test_url_safe_base64_is_refused():
    """DSSE-1; case 23."""
    payload = b"\xfb\xff\xfe"
    good = envelope(payload).encode()
    strange = base64.urlsafe_b64encode(payload)
    with pytest.raises(InvalidRecordError, match="base64"):
        Envelope.decode(good.replace(base64.b64encode(payload), strange, 1))


def test_no_signature_too_many_or_two_of_one_key_are_refused():
    """DSSE-3; cases 19 and 24."""
    one = envelope().signatures[0]
    for signatures in ((), (one, one), (one,) * 17):
        with pytest.raises(InvalidRecordError):
            Envelope(payload_type=TYPE, payload=b"", signatures=signatures)


def test_a_signature_moved_past_the_group_order_is_refused():
    """KEY-1; case 23: S + L says the same and is not the same."""
    order = 2**252 + 27742317777372353535851937790883648493
    made = envelope()
    sig = made.signatures[0].sig
    moved = (int.from_bytes(sig[32:], "little") + order).to_bytes(32, "little")
    assert key(1).public.verifies(sig, made.signed)
    assert not key(1).public.verifies(sig[:32] + moved, made.signed)


@pytest.mark.parametrize("sig", [b"", b"x", bytes(64), bytes(63), bytes(65)])
def test_a_signature_of_strange_length_does_not_verify(sig):
    assert not key(1).public.verifies(sig, b"")


def test_the_vectors_agree_with_a_second_writer():
    """DSSE-1, DSSE-2, KEY-1."""
    for vector in VECTORS["signed"]:
        payload = vector["payload"].encode()
        signed = b"DSSEv1 28 %b %d %b" % (TYPE.encode(), len(payload), payload)
        found = json.loads(vector["envelope"])
        assert signed.hex() == vector["signed"]
        assert base64.b64decode(found["payload"]) == payload
        sig = base64.b64decode(found["signatures"][0]["sig"])
        assert PublicKey.parse(vector["public"]).verifies(sig, signed)
        spelled = json.dumps(found, sort_keys=True, separators=(",", ":"))
        assert spelled == vector["envelope"]


def test_the_statement_in_the_vectors_names_the_manifest():
    """ATT-2."""
    from blake3 import blake3

    manifest = VECTORS["manifest"].encode()
    statement = json.loads(VECTORS["signed"][1]["payload"])
    assert statement == {
        "_type": "https://in-toto.io/Statement/v1",
        "predicate": {"artifact": "kolm-artifact/1"},
        "predicateType": "urn:kolm:predicate:built:1",
        "subject": [
            {
                "digest": {
                    "blake3": blake3(manifest).hexdigest(),
                    "sha256": sha256(manifest).hexdigest(),
                },
                "name": "tiny",
            }
        ],
    }


def test_the_vectors_that_are_refused_are_refused():
    """DSSE-1, DSSE-3."""
    for text in VECTORS["refused"]:
        with pytest.raises(InvalidRecordError):
            Envelope.decode(text.encode())
