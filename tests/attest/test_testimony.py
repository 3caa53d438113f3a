"""What is known of a claim: its signer, when it was seen, what was committed to (spec/trust.md)."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kolm_build.attest.claims import Fact, sign_claim
from kolm_build.attest.envelope import Envelope
from kolm_build.attest.testimony import FoundClaim, commit, examine, hear, witness
from kolm_build.attest.trust import parse_trust
from kolm_build.core import strict_json
from kolm_build.core.quorum import BUILT, COPIED
from kolm_build.errors import InvalidRecordError, SignatureError
from tests.attest.helping import key

ANN, BEN, LOG, OLD_LOG, SHORT_LOG, STRANGER = (key(number) for number in range(1, 7))
JAN, FEB, MAR, APR = (f"2026-0{month}-01T00:00:00Z" for month in range(1, 5))
TRUST = parse_trust(
    f"""version = 2
[threshold]
builder = 1
[[principal]]
name = "ann"
roles = ["builder"]
keys = [{{key = "{ANN.public}", until = {MAR}}}]
[[principal]]
name = "ben"
roles = ["evaluator"]
keys = ["{BEN.public}"]
[[principal]]
name = "log"
roles = ["log"]
keys = [
  "{LOG.public}",
  {{key = "{OLD_LOG.public}", revoked = {APR}}},
  {{key = "{SHORT_LOG.public}", from = {FEB}, until = {MAR}}},
]
""".encode(),
    "trust.toml",
)
NAMES = ("resolved", "content", "derivation", "circumstances")
FACT = Fact(record=b"record", output="out", digests={name: f"b3:{name}" for name in NAMES})
CLAIM = sign_claim(FACT, kind=BUILT, key=ANN)
NONCE = bytes(range(32))


def hear_with(*evidence, envelope=CLAIM, fact=FACT):
    pieces = tuple(one if isinstance(one, tuple) else (one, None) for one in evidence)
    return hear(FoundClaim(fact=fact, envelope=envelope, evidence=pieces), TRUST)


def test_a_countersignature_says_that_an_envelope_was_there():
    """WITNESS-1."""
    seen = witness(CLAIM, time=FEB, key=LOG)
    statement = strict_json.loads(Envelope.decode(seen).payload)
    assert statement == {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [
            {
                "name": "evidence",
                "digest": {
                    "sha256": sha256(CLAIM).hexdigest(),
                    "blake3": blake3(CLAIM).hexdigest(),
                },
            }
        ],
        "predicateType": "urn:kolm:predicate:witnessed:1",
        "predicate": {"time": FEB},
    }
    assert seen == witness(CLAIM, time=FEB, key=LOG)
    with pytest.raises(InvalidRecordError, match="not a time"):
        witness(CLAIM, time="yesterday", key=LOG)


def test_the_earliest_trusted_time_is_the_evidence_time():
    """WITNESS-2."""
    vote = hear_with(witness(CLAIM, time=FEB, key=LOG), witness(CLAIM, time=JAN, key=LOG))
    assert (vote.signer, vote.seen, vote.objection) == ("ann", JAN, "")
    assert vote.is_valid


@pytest.mark.parametrize(
    "piece",
    [
        witness(CLAIM, time=JAN, key=STRANGER),
        witness(CLAIM, time=JAN, key=BEN),
        witness(CLAIM, time=JAN, key=OLD_LOG),
        witness(CLAIM, time=JAN, key=SHORT_LOG),
        witness(b"another", time=JAN, key=LOG),
        witness(CLAIM, time=JAN, key=LOG).replace(b'"sig":"', b'"sig":"AAAA'),
        CLAIM,
        b"",
        b"{}",
    ],
)
def test_what_no_trusted_log_says_gives_no_time(piece):
    """WITNESS-2, WITNESS-3."""
    vote = hear_with(piece)
    assert vote.seen == ""
    assert "no trusted log says when it signed" in vote.objection
    assert not vote.is_valid


def test_a_logs_key_counts_for_times_inside_its_window():
    """WITNESS-2."""
    assert hear_with(witness(CLAIM, time=FEB, key=SHORT_LOG)).seen == FEB


def test_a_key_that_had_expired_when_the_claim_was_seen_does_not_count():
    """WITNESS-3."""
    vote = hear_with(witness(CLAIM, time=APR, key=LOG))
    assert vote.objection == f"the key expired at {MAR}; seen {APR}"


@pytest.mark.parametrize(
    ("envelope", "signer", "objection"),
    [
        (None, "", "not signed"),
        (sign_claim(FACT, kind=BUILT, key=STRANGER), "", "the trust file does not have"),
        (sign_claim(FACT, kind=BUILT, key=BEN), "ben", "ben does not have the role builder"),
        (b"{}", "", "missing value"),
        (CLAIM.replace(b'"sig":"', b'"sig":"AAAA'), "", "forged or damaged"),
    ],
)
def test_what_is_wrong_with_a_claim_is_its_objection(envelope, signer, objection):
    """QUORUM-5."""
    vote = hear_with(envelope=envelope)
    assert vote.signer == signer
    assert objection in vote.objection
    assert not vote.is_valid


def test_a_copy_is_heard_as_one_and_a_claim_about_something_else_is_none():
    """QUORUM-5."""
    vote = hear_with(
        witness(CLAIM, time=JAN, key=LOG), envelope=sign_claim(FACT, kind=COPIED, key=ANN)
    )
    assert (vote.kind, vote.is_valid) == (COPIED, False)
    other = replace(FACT, digests={**FACT.digests, "content": "b3:other"})
    assert "something else" in hear_with(fact=other).objection
    with pytest.raises(SignatureError, match="something else"):
        examine(FoundClaim(fact=other, envelope=CLAIM), TRUST)


def test_a_commitment_names_no_content_and_opens_for_its_claim():
    """COMMIT-1, COMMIT-2."""
    made = commit(FACT, nonce=NONCE, key=ANN)
    text = f"kolm commitment v1\nb3:resolved\nout\nb3:content\n{ANN.public.keyid}\n{NONCE.hex()}\n"
    statement = strict_json.loads(Envelope.decode(made).payload)
    assert statement["subject"] == [
        {
            "name": "out",
            "digest": {
                "sha256": sha256(text.encode()).hexdigest(),
                "blake3": blake3(text.encode()).hexdigest(),
            },
        }
    ]
    assert statement["predicateType"] == "urn:kolm:predicate:commitment:1"
    assert statement["predicate"] == {"output": "out", "resolved": "b3:resolved"}
    seen = witness(made, time=JAN, key=LOG)
    assert hear_with((made, NONCE), seen).committed == JAN


@pytest.mark.parametrize(
    ("piece", "nonce"),
    [
        (commit(FACT, nonce=NONCE, key=ANN), bytes(32)),
        (commit(FACT, nonce=NONCE[:31], key=ANN), NONCE[:31]),
        (commit(FACT, nonce=NONCE, key=BEN), NONCE),
        (commit(replace(FACT, output="other"), nonce=NONCE, key=ANN), NONCE),
        (
            commit(
                replace(FACT, digests={**FACT.digests, "content": "b3:other"}), nonce=NONCE, key=ANN
            ),
            NONCE,
        ),
        (b"", NONCE),
    ],
)
def test_a_commitment_to_something_else_or_by_another_opens_nothing(piece, nonce):
    """COMMIT-2."""
    assert hear_with((piece, nonce), witness(piece, time=JAN, key=LOG)).committed == ""


def test_a_commitment_that_no_log_has_seen_has_no_time():
    """COMMIT-3."""
    assert hear_with((commit(FACT, nonce=NONCE, key=ANN), NONCE)).committed == ""


VECTORS = json.loads((Path(__file__).parents[2] / "spec/vectors/trust.json").read_text())


def _payload(who, envelope):
    """What an envelope holds, its one signature checked without this package."""
    private = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(VECTORS[who]["seed"]))
    value = json.loads(envelope["envelope"])
    payload = base64.b64decode(value["payload"])
    assert payload.decode() == envelope["payload"]
    kind = value["payloadType"].encode()
    signed = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
    (signature,) = value["signatures"]
    assert signature["keyid"] == VECTORS[who]["keyid"]
    private.public_key().verify(base64.b64decode(signature["sig"]), signed)
    return json.loads(payload)


def _digests(data):
    return {"sha256": sha256(data).hexdigest(), "blake3": blake3(data).hexdigest()}


def test_the_vectors_follow_from_the_text_of_the_specification():
    """CLAIM-1, COMMIT-1, WITNESS-1: recomputed with hashes and signatures alone."""
    digests = VECTORS["digests"]
    for kind, claim in VECTORS["claims"].items():
        statement = _payload("builder", claim)
        subject = {"name": "out", "digest": _digests(bytes.fromhex(VECTORS["record"]))}
        assert statement["subject"] == [subject]
        assert statement["predicate"] == {"type": kind, "output": "out", **digests}
    lines = ["kolm commitment v1", digests["resolved"], "out", digests["content"]]
    lines += [VECTORS["builder"]["keyid"], VECTORS["nonce"]]
    text = "".join(f"{line}\n" for line in lines).encode()
    committed = _payload("builder", VECTORS["commitment"])
    assert committed["subject"] == [{"name": "out", "digest": _digests(text)}]
    assert committed["predicate"] == {"resolved": digests["resolved"], "output": "out"}
    for name, seen in (
        ("witness_of_built", VECTORS["claims"]["built"]),
        ("witness_of_commitment", VECTORS["commitment"]),
    ):
        statement = _payload("log", VECTORS[name])
        envelope = seen["envelope"].encode()
        assert statement["subject"] == [{"name": "evidence", "digest": _digests(envelope)}]
        assert statement["predicate"] == {"time": VECTORS["time"]}
