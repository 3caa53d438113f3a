"""spec/vectors/federated.json against a second implementation, and against the product."""

from __future__ import annotations

import itertools
import json
from decimal import Decimal
from pathlib import Path

import cbor2
import pytest

from kolm_build.attest.rounds import KeyPair, Shares, commitment, pair_seed
from kolm_build.core.federated import shamir
from kolm_build.core.federated.fixed_point import clipped, to_fixed
from kolm_build.core.federated.gaussian import gaussian_noise
from kolm_build.core.federated.keystream import keystream
from kolm_build.core.federated.privacy import ORDERS, spent
from kolm_build.core.federated.round import Round
from kolm_build.core.federated.sealed import Secret
from kolm_build.steps.federated.seal import seal
from tests.federated import independent

PATH = Path(__file__).resolve().parents[2] / "spec" / "vectors" / "federated.json"
VECTORS = json.loads(PATH.read_text())
raw = bytes.fromhex


def each(kind):
    return pytest.mark.parametrize("case", VECTORS[kind], ids=lambda _: "")


@each("shamir")
def test_shares_are_both_implementations(case):
    """FED-10, FED-11, FED-12."""
    secret, randoms = raw(case["secret"]), raw(case["random"])
    shares = {int(number): raw(text) for number, text in case["shares"].items()}
    made = shamir.split(secret, threshold=case["threshold"], shares=len(shares), random=randoms)
    assert made == shares
    assert shares == {one: independent.share(secret, randoms, one) for one in shares}
    for chosen in itertools.combinations(shares, case["threshold"]):
        some = {one: shares[one] for one in chosen}
        assert independent.joined(some) == secret
        assert shamir.join(some, threshold=case["threshold"]) == secret


@each("fixed")
def test_fixed_point_is_both_implementations(case):
    """FED-20, FED-21."""
    values, bits = [float.fromhex(text) for text in case["values"]], case["bits"]
    assert to_fixed(values, bits) == case["fixed"]
    assert [independent.fixed(value, bits) for value in values] == case["fixed"]
    assert clipped(case["fixed"], case["bound"]) == case["clipped"]
    assert independent.clipped(case["fixed"], case["bound"]) == case["clipped"]


@each("keystream")
def test_streams_are_both_implementations(case):
    """FED-30."""
    seed, wanted = raw(case["seed"]), raw(case["bytes"])
    assert keystream(seed, purpose=case["purpose"], length=len(wanted)) == wanted
    assert independent.stream(seed, case["purpose"], len(wanted)) == wanted


@each("noise")
def test_noise_is_both_implementations(case):
    """FED-40, FED-41."""
    seed, drawn, variance = raw(case["seed"]), case["drawn"], int(case["variance"])
    assert gaussian_noise(seed, count=len(drawn), variance=variance) == drawn
    flips = independent.Flips(seed)
    assert [flips.gaussian(variance) for _ in drawn] == drawn


@each("pair")
def test_agreed_seeds_are_both_implementations(case):
    """FED-32."""
    private, public, round_id = raw(case["private"]), raw(case["public"]), raw(case["round"])
    first, second = case["names"]
    own = KeyPair.of(private)
    made = pair_seed(own, public, round_id=round_id, names=(first, second))
    assert made == raw(case["seed"])
    assert independent.pair(private, public, round_id, case["names"]) == made
    other = raw(case["other_private"])
    assert independent.pair(other, own.public, round_id, case["names"]) == made


@each("commitment")
def test_commitments_are_both_implementations(case):
    """FED-33."""
    seed, wanted = raw(case["seed"]), raw(case["commitment"])
    assert commitment(seed) == independent.commitment(seed) == wanted


@each("share")
def test_sealed_shares_are_both_implementations(case):
    """FED-35."""
    private, public, round_id = raw(case["private"]), raw(case["public"]), raw(case["round"])
    shares = Shares(mask=raw(case["mask"]), own=raw(case["own"]))
    names = {"sender": case["sender"], "receiver": case["receiver"]}
    made = shares.seal(KeyPair.of(private), public, round_id=round_id, **names)
    assert made == raw(case["sealed"])
    plain = [shares.mask, shares.own]
    assert independent.sealed_share(private, public, round_id, names.values(), plain) == made


@each("round")
def test_rounds_are_both_implementations(case):
    """FED-1, FED-42."""
    record = raw(case["record"])
    made = Round.decode(record)
    assert (made.encode(), str(made.id)) == (record, case["id"])
    assert independent.round_id(record) == case["id"]
    value = cbor2.loads(record)
    assert cbor2.dumps(value, canonical=True) == record
    assert made.plan.noise_variance == int(case["noise_variance"])
    assert independent.noise_variance(value["plan"]) == int(case["noise_variance"])


@each("seal")
def test_sealed_vectors_are_both_implementations(case):
    """FED-31."""
    record, vector, wanted = raw(case["record"]), case["vector"], list(map(int, case["sealed"]))
    pairs = {name: raw(text) for name, text in case["pairs"].items()}
    own, noise = raw(case["own"]), raw(case["noise"])
    secret = Secret(pairs=pairs, own=own, noise=noise)
    assert seal(vector, Round.decode(record), case["site"], secret).tolist() == wanted
    value = cbor2.loads(record)
    assert independent.sealed(value, case["site"], vector, pairs, own=own, noise=noise) == wanted


@each("privacy")
def test_privacy_losses_are_both_implementations(case):
    """FED-50, FED-51, FED-52."""
    names = ("noise_multiplier", "delta", "sampling_rate")
    made = spent(rounds=case["rounds"], **{name: Decimal(case[name]) for name in names})
    assert str(made.epsilon) == case["epsilon"]
    figures = [float(case[name]) for name in names]
    found = independent.epsilon(case["rounds"], *figures, ORDERS)
    assert found - 1e-9 <= float(case["epsilon"]) < found + 1.001e-4
