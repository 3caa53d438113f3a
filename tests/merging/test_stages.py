"""Stages of a recipe that merge, as the nodes of its pipeline; MERGE-20."""

from __future__ import annotations

import pytest

from kolm_build.core.catalogue.merging import ROWS
from kolm_build.core.instantiation.instantiate import instantiate
from kolm_build.core.recipe import parse_recipe
from kolm_build.errors import InvalidRecordError
from kolm_build.steps.combine import parse_method
from kolm_build.steps.table import STEPS
from tests.core.samples import PLATFORM, digest, lock
from tests.core.test_pipeline import edges
from tests.support.staged import HEAD, stage


def recipe(algorithm, **keys):
    first = stage("sft", name="one")
    second = stage("sft", name="two", from_="base")
    merging = stage(algorithm, from_="base", models=["two", "one"], **keys)
    return parse_recipe(HEAD + first + second + merging, file="kolm.toml")


def node(algorithm, **keys):
    made = recipe(algorithm, **keys)
    found = instantiate(
        made,
        lock(made, steps=STEPS),
        steps=STEPS,
        platform=PLATFORM,
        story=lambda _: digest("story"),
    )
    return found, found.nodes["train-3"]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_a_stage_that_merges_is_a_node_that_its_step_understands(row):
    """MERGE-20, MERGE-1: params by the catalogue, parsed by the step."""
    _, found = node(row.id)
    params = dict(found.params)
    assert params == {"algorithm": row.id} | {one.name: one.default for one in row.parameters}
    assert parse_method(params, 2) == parse_method({"algorithm": row.id}, 2)
    assert found.step == "combine"
    assert [name for name, _ in found.outputs] == ["model"]


def test_a_merge_takes_the_base_and_the_models_in_the_recipes_order():
    """MERGE-20: and what a later stage or the evaluation reads is its output."""
    found, _ = node("soup")
    nodes = edges(found)
    assert nodes["train-3"] == {
        "model": "base.out",
        "models-1": "merge-2.out",
        "models-2": "merge-1.out",
    }
    assert nodes["evaluation"]["model"] == "train-3.model"


def test_weights_are_plain_decimals_in_their_order():
    """Two ways to write a number are one derivation; two orders of models are two."""
    assert dict(node("soup", weights="1.0, 5e-1")[1].params)["weights"] == "1,0.5"
    assert dict(node("soup", weights="0.5,1")[1].params)["weights"] == "0.5,1"


@pytest.mark.parametrize(
    ("algorithm", "keys", "where"),
    [
        ("soup", {"weights": "1,-1"}, "train[2].weights"),
        ("soup", {"weights": "1,,1"}, "train[2].weights"),
        ("soup", {"adapter": "lora"}, "train[2].adapter"),
        ("soup", {"learning_rate": "0.1"}, "train[2].learning_rate"),
        ("ties", {"density": "2"}, "train[2].density"),
        ("slerp", {"t": "-0.1"}, "train[2].t"),
    ],
)
def test_a_recipe_that_cannot_be_meant_is_refused_where_it_says_so(algorithm, keys, where):
    with pytest.raises(InvalidRecordError) as caught:
        recipe(algorithm, **keys)
    assert caught.value.where == where
