"""Rounds, plans and what travels in them: one encoding each, refused where it does not fit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kolm_build.core import cbor
from kolm_build.core.catalogue.federated import ROWS as CATALOGUE
from kolm_build.core.derivation import ContentInput, Derivation
from kolm_build.core.digest import Digest
from kolm_build.core.federated.plan import METHODS, FederationPlan
from kolm_build.core.federated.round import Opening, Round
from kolm_build.core.federated.sealed import Head, Secret, Unsealing, size_of
from kolm_build.core.federated.submission import (
    SEAL,
    UPDATE,
    Submission,
    check_submission,
    update_params,
)
from kolm_build.core.numerics import Numerics
from kolm_build.errors import InvalidRecordError, RoundError, SubmissionError
from tests.federated.parties import ROWS, plan, record, site


def test_a_round_is_read_as_it_was_written():
    """FED-1."""
    made = record()
    assert Round.decode(made.encode()) == made
    assert Opening.decode(made.opening.encode()) == made.opening
    assert cbor.decode(made.encode())["sites"][0]["name"] == "north"


def test_whatever_changes_in_a_round_changes_its_id():
    """FED-1."""
    ids = {
        record().id,
        record(number=2).id,
        record(plan(clip="2")).id,
        record(rows={**ROWS, "west": 6}).id,
        record(rows={"north": 2, "south": 3}).id,
    }
    assert len(ids) == 5


@pytest.mark.parametrize("sites", [(), ("north",)])
def test_too_few_sites_are_refused(sites):
    """FED-2."""
    with pytest.raises(RoundError, match="too few sites"):
        record(rows=dict.fromkeys(sites, 1))


def test_two_groups_that_could_each_unmask_are_refused():
    """FED-2."""
    with pytest.raises(InvalidRecordError, match="two groups"):
        record(rows={"a": 1, "b": 1, "c": 1, "d": 1})
    record(plan(threshold=3), rows={"a": 1, "b": 1, "c": 1, "d": 1})


def test_sites_out_of_order_or_twice_are_refused():
    """FED-2."""
    made = record()
    for sites in (made.sites[::-1], (made.sites[0], made.sites[0])):
        with pytest.raises(InvalidRecordError, match="out of order"):
            Round(opening=made.opening, sites=sites)


@pytest.mark.parametrize("rows", [0, -1, 1 << 40])
def test_a_number_of_rows_that_cannot_be_is_refused(rows):
    with pytest.raises(InvalidRecordError, match="range"):
        site("north", rows)


def test_a_sum_that_could_run_over_is_refused_when_the_round_is_made():
    """FED-22."""
    with pytest.raises(InvalidRecordError, match="run over"):
        record(plan(clip="65536", fraction_bits=40), rows={"a": 1 << 6, "b": 1})
    noisy = {"weight": "equal", "noise_multiplier": "1000", "clip": "65536"}
    with pytest.raises(InvalidRecordError, match="run over"):
        record(plan("dp-fed-avg", fraction_bits=40, **noisy))


@pytest.mark.parametrize(
    ("method", "changes", "where"),
    [
        ("fed-avg", {"mu": "x"}, "mu"),
        ("fed-avg", {"delta": "0"}, "delta"),
        ("fed-avg", {"clip": "0"}, "clip"),
        ("fed-avg", {"clip": "0.000000001"}, "clip"),
        ("fed-avg", {"noise_multiplier": "1"}, "weight"),
        ("dp-fed-avg", {}, "noise_multiplier"),
        ("dp-fed-avg", {"noise_multiplier": "1"}, "weight"),
        ("scaffold", {"noise_multiplier": "1", "weight": "equal"}, "noise_multiplier"),
        ("fed-dyn", {"mu": "0"}, "mu"),
        ("flora", {}, "masks"),
        ("scaffold", {"training": {"optimiser": "adamw"}}, "training.optimiser"),
        ("nothing", {}, "method"),
        ("fed-avg", {"surprise": 1}, "surprise"),
        ("fed-avg", {"v": 2}, "v"),
    ],
)
def test_a_plan_that_cannot_be_kept_is_refused_where_it_says_so(method, changes, where):
    """FED-6."""
    with pytest.raises(InvalidRecordError) as caught:
        plan(method, **changes)
    assert caught.value.where == where


def test_a_plan_is_read_as_it_was_written():
    made = plan("fed-yogi", clip="1.50", beta1="0.8")
    assert made.clip == "1.5"
    assert FederationPlan.from_value(made.to_value()) == made


def test_the_catalogue_names_the_methods_of_a_plan_with_its_defaults():
    assert {row.id for row in CATALOGUE} == set(METHODS)
    made = plan().to_value()
    for row in CATALOGUE:
        for one in row.parameters:
            assert one.default == made[one.name], (row.id, one.name)


def test_every_sites_noise_is_its_share_of_what_must_stay():
    """FED-42: exact, and rounded up."""
    made = plan("dp-fed-avg", weight="equal", noise_multiplier="0.3", clip="1", threshold=3)
    exact = (3 * 2**24) ** 2
    assert made.noise_variance == -(-exact // (100 * 3))
    assert 100 * 3 * made.noise_variance >= exact


# What is in a sealed update

NAMES = st.sampled_from(["a", "b", "c", "d"])
SEEDS = st.dictionaries(NAMES, st.binary(min_size=32, max_size=32))


@given(SEEDS, st.one_of(st.none(), st.binary(min_size=32, max_size=32)))
def test_seeds_are_read_as_they_were_written(pairs, own):
    """FED-31."""
    made = Secret(pairs=pairs, own=own, noise=own)
    assert Secret.decode(made.encode()) == made
    unsealing = Unsealing(survivors=("a", "b"), own=pairs, pairs={"c": pairs})
    assert Unsealing.decode(unsealing.encode()) == unsealing


def test_a_head_is_read_as_it_was_written():
    layout = (("a", (2, 3)), ("b", (4,)))
    made = Head(round=Digest(bytes(32)), site="north", layout=layout)
    assert Head.decode(made.encode()) == made
    assert size_of(layout) == 10


@pytest.mark.parametrize("layout", [[["a"]], [["a", [0]]], [["a", ["2"]]], [[1, [2]]]])
def test_a_layout_that_is_none_is_refused(layout):
    """FED-67."""
    value = {"v": 1, "round": bytes(32), "site": "a", "layout": layout}
    with pytest.raises(InvalidRecordError, match="name and shape"):
        Head.decode(cbor.encode(value))


@pytest.mark.parametrize("value", [{"a": bytes(31)}, {"a": "text"}])
def test_a_seed_that_is_none_is_refused(value):
    with pytest.raises(InvalidRecordError, match="not a seed"):
        Secret.decode(cbor.encode({"v": 1, "pairs": value, "own": None, "noise": None}))


# What a site hands in

CARD = b'{"rows":2,"version":1}'


def derivation(step, inputs, params, numerics="exact-1"):
    return Derivation(
        name="any",
        step=step,
        code=Digest(bytes(32)),
        environment=None,
        params=tuple(sorted(params.items())),
        inputs=tuple(sorted((role, ContentInput(content=one)) for role, one in inputs.items())),
        outputs=(("out", None),),
        numerics=Numerics(cls=numerics),
    )


def handed_in(made, *, changed=None, sealed=None, params=None, numerics="portable-1", card=CARD):
    """What the site north hands in, as it should be but for the changes."""
    opening = made.opening
    inputs = {
        "model": opening.base,
        "global": opening.adapter,
        "state": opening.state,
        "train": Digest(b"t" * 32),
    } | (changed or {})
    update = Digest(b"u" * 32)
    seal = {"update": update, "round": Digest(b"r" * 32), "global": opening.adapter}
    return Submission(
        site="north",
        update=derivation(UPDATE, inputs, params or update_params(made.plan), numerics),
        seal=derivation(SEAL, seal | (sealed or {}), {"site": "north"}),
        contents={"update": update},
        card=card,
    )


def check(given, made):
    check_submission(given, made, Digest(b"r" * 32))


def test_what_the_round_asked_for_is_taken():
    """FED-62."""
    made = record()
    check(handed_in(made), made)


OTHER = Digest(b"x" * 32)


@pytest.mark.parametrize(
    ("how", "what"),
    [
        ({"changed": {"model": OTHER}}, "base"),
        ({"changed": {"global": OTHER}}, "adapter"),
        ({"changed": {"state": OTHER}}, "state"),
        ({"params": {"epochs": 9}}, "params"),
        ({"numerics": "exact-1"}, "class"),
        ({"card": b'{"rows":3,"version":1}'}, "rows"),
        ({"sealed": {"update": OTHER}}, "update"),
        ({"sealed": {"round": OTHER}}, "round"),
        ({"sealed": {"global": OTHER}}, "adapter"),
    ],
)
def test_what_the_round_did_not_ask_for_is_refused(how, what):
    """FED-62, FED-63."""
    made = record()
    with pytest.raises(SubmissionError) as caught:
        check(handed_in(made, **how), made)
    assert caught.value.where == f"north: {what}"


def test_nothing_sealed_is_refused_where_masks_are_asked_for():
    """FED-62."""
    made = record()
    given = handed_in(made)
    bare = Submission(
        site="north", update=given.update, seal=None, contents=given.contents, card=CARD
    )
    with pytest.raises(SubmissionError, match="nothing that was sealed"):
        check(bare, made)
