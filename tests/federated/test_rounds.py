"""The cryptography of a round, and masks over real seals (FED-31 to FED-37)."""

from __future__ import annotations

from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kolm_build.attest.keys import create, load
from kolm_build.attest.rounds import (
    KeyPair,
    Shares,
    commitment,
    open_message,
    pair_seed,
    sign_message,
)
from kolm_build.core.federated.sealed import Secret, Unsealing
from kolm_build.errors import InvalidRecordError, RoundError, SubmissionError
from kolm_build.steps.federated.aggregate import unseal
from kolm_build.steps.federated.seal import seal, unsigned
from tests.federated.parties import plan, record

ID = bytes(range(32))


def pair(name):
    return KeyPair.of(sha256(name.encode()).digest())


def test_two_sites_agree_on_a_seed_that_is_fresh_each_round():
    """FED-32."""
    a, b = pair("a"), pair("b")
    seed = pair_seed(a, b.public, round_id=ID, names=("a", "b"))
    assert seed == pair_seed(b, a.public, round_id=ID, names=("b", "a"))
    others = {
        pair_seed(a, b.public, round_id=bytes(32), names=("a", "b")),
        pair_seed(a, b.public, round_id=ID, names=("a", "c")),
        pair_seed(a, pair("c").public, round_id=ID, names=("a", "b")),
    }
    assert seed not in others
    assert len(others) == 3


def test_a_weak_key_is_refused():
    """FED-32: a point of small order gives a secret that everybody knows."""
    with pytest.raises(SubmissionError, match="weak key"):
        pair_seed(pair("a"), bytes(32), round_id=ID, names=("a", "b"))


def sealed_for_b(a, b):
    shares = Shares(mask=b"m" * 33, own=b"o" * 33)
    return shares, shares.seal(a, b.public, round_id=ID, sender="a", receiver="b")


def test_shares_are_opened_by_the_one_they_were_sealed_for():
    """FED-35."""
    a, b = pair("a"), pair("b")
    shares, data = sealed_for_b(a, b)
    opened = Shares.open(data, b, a.public, round_id=ID, sender="a", receiver="b")
    assert opened == shares
    assert b"m" * 8 not in data


@pytest.mark.parametrize(
    "change",
    [
        {"round_id": bytes(32)},
        {"sender": "c"},
        {"receiver": "a"},
        {"own": pair("c")},
        {"other": pair("c").public},
        {"cut": 1},
    ],
)
def test_shares_for_somebody_else_are_refused(change):
    """FED-35."""
    a, b = pair("a"), pair("b")
    _, data = sealed_for_b(a, b)
    how = {"own": b, "other": a.public, "round_id": ID, "sender": "a", "receiver": "b"} | change
    data = data[: len(data) - how.pop("cut", 0)]
    with pytest.raises(SubmissionError, match="not sealed for this site"):
        Shares.open(data, how.pop("own"), how.pop("other"), **how)


def test_a_seed_is_bound_to_what_was_said_of_it():
    """FED-33."""
    assert commitment(b"a" * 32) != commitment(b"b" * 32)
    assert len(commitment(bytes(32))) == 32


@pytest.fixture
def keys(tmp_path):
    made = []
    for name in ("one", "two"):
        create(tmp_path / name, passphrase=None, unencrypted=True)
        made.append(load(tmp_path / name, passphrase=None))
    return made


def test_a_message_says_what_was_signed_and_nothing_else(keys):
    """FED-36."""
    one, two = keys
    envelope = sign_message("advert", {"x": 1}, one)
    assert envelope == sign_message("advert", {"x": 1}, one)
    fields = open_message(envelope, "advert", one.public, who="north")
    assert fields.integer("x") == 1
    fields.done()
    for data, kind, key in (
        (envelope, "advert", two.public),
        (envelope, "survivors", one.public),
        (envelope[:-1], "advert", one.public),
        (sign_message("advert", {"x": 2}, two), "advert", one.public),
    ):
        with pytest.raises(SubmissionError):
            open_message(data, kind, key, who="north")


# Masks cancel bit for bit

NAMES = ("north", "south", "west")
ROWS = {"north": 2, "south": 3, "west": 5}
VECTORS = st.lists(st.integers(-(1 << 40), 1 << 40), min_size=4, max_size=4)


def seeds(made):
    """Own and pairwise seeds of the three sites."""
    pairs = {name: pair(name) for name in NAMES}
    return {
        name: Secret(
            pairs={
                peer: pair_seed(
                    pairs[name], pairs[peer].public, round_id=made.id.raw, names=(name, peer)
                )
                for peer in NAMES
                if peer != name
            },
            own=name.encode().ljust(32),
            noise=None,
        )
        for name in NAMES
    }


@settings(max_examples=60)
@given(
    st.fixed_dictionaries(dict.fromkeys(NAMES, VECTORS)),
    st.sampled_from([NAMES, NAMES[:2], NAMES[1:], (NAMES[0], NAMES[2])]),
)
def test_the_masked_sum_unsealed_is_the_plain_sum_bit_for_bit(vectors, survivors):
    """FED-31, FED-34."""
    made = record(plan("fed-avg"), rows=ROWS)
    secrets = seeds(made)
    sealed = {name: seal(vectors[name], made, name, secrets[name]) for name in NAMES}
    gone = [name for name in NAMES if name not in survivors]
    unsealing = Unsealing(
        survivors=survivors,
        own={name: secrets[name].own for name in survivors},
        pairs={one: {name: secrets[name].pairs[one] for name in survivors} for one in gone},
    )
    found = unseal([sealed[name] for name in survivors], made, unsealing)
    plain = sum(np.array(vectors[name], dtype=object) * ROWS[name] for name in survivors)
    assert found.view(np.int64).tolist() == plain.tolist()
    for name in NAMES:
        assert sealed[name].tolist() != unsigned([ROWS[name] * v for v in vectors[name]]).tolist()


def test_a_sum_with_a_mask_left_in_it_is_another():
    """FED-34: the test above would notice."""
    made = record(rows=ROWS)
    secrets = seeds(made)
    sealed = [seal([1, 2, 3, 4], made, name, secrets[name]) for name in NAMES]
    own = {name: secrets[name].own for name in NAMES}
    wrong = Unsealing(survivors=NAMES, own=own | {"west": bytes(32)}, pairs={})
    assert unseal(sealed, made, wrong).tolist() != [10, 20, 30, 40]


@pytest.mark.parametrize(
    "unsealing",
    [
        Unsealing(survivors=NAMES, own={}, pairs={}),
        Unsealing(survivors=NAMES[:2], own={name: bytes(32) for name in NAMES}, pairs={}),
        Unsealing(
            survivors=NAMES,
            own={name: bytes(32) for name in NAMES},
            pairs={"west": {name: bytes(32) for name in NAMES}},
        ),
        Unsealing(
            survivors=NAMES[:2],
            own={name: bytes(32) for name in NAMES[:2]},
            pairs={"west": {"north": bytes(32)}},
        ),
    ],
)
def test_seeds_of_other_masks_than_those_in_the_sum_are_refused(unsealing):
    """FED-34: never both the own seed of a site and its pairwise ones."""
    made = record(rows=ROWS)
    with pytest.raises(InvalidRecordError, match="other masks"):
        unseal([np.zeros(4, np.uint64)] * 3, made, unsealing)


@pytest.mark.parametrize(
    ("secret", "reason"),
    [
        (Secret(pairs={}, own=None, noise=None), "masks"),
        (Secret(pairs={}, own=bytes(32), noise=None), "masks"),
        (Secret(pairs={"south": bytes(32)}, own=bytes(32), noise=bytes(32)), "noise"),
        (Secret(pairs={"north": bytes(32)}, own=bytes(32), noise=None), "no site"),
    ],
)
def test_seeds_that_are_not_as_the_plan_says_are_refused(secret, reason):
    """FED-31."""
    with pytest.raises(InvalidRecordError, match=reason):
        seal([1], record(rows=ROWS), "north", secret)


def test_a_site_that_takes_no_part_seals_nothing():
    with pytest.raises(InvalidRecordError, match="no site of this round"):
        seal([1], record(plan(masks=False)), "east", Secret(pairs={}, own=None, noise=None))


def test_noise_is_in_the_sum_and_masks_are_not():
    """FED-31, FED-42."""
    made = record(plan("dp-fed-avg", weight="equal", noise_multiplier="0.01", clip="1"), rows=ROWS)
    secrets = {
        name: Secret(pairs=one.pairs, own=one.own, noise=name.encode().ljust(32, b"n"))
        for name, one in seeds(made).items()
    }
    sealed = [seal([0] * 400, made, name, secrets[name]) for name in NAMES]
    own = {name: secrets[name].own for name in NAMES}
    whole = unseal(sealed, made, Unsealing(survivors=NAMES, own=own, pairs={}))
    values = whole.view(np.int64).astype(float)
    wanted = 3 * made.plan.noise_variance
    assert abs((values**2).mean() / wanted - 1) < 5 * (2 / 400) ** 0.5


def test_the_threshold_is_told_in_the_error_of_a_round_of_one():
    """FED-2, FED-68."""
    with pytest.raises(RoundError) as caught:
        record(rows={"north": 1})
    assert "2 or more" in str(caught.value)
