"""Stages that mix adapters, and adapters that stay beside their model."""

import pytest

from kolm_build.core.plain import plain
from tests.core.samples import lock
from tests.core.test_pipeline import edges
from tests.support.staged import made, read, refused, stage

pytestmark = pytest.mark.usefixtures("catalogue")


MIX = {"adapter": "mixer", "from_": "base"}
TWO = stage("sft", name="one") + stage("prefer", rows="votes", from_="base")


def test_a_stage_mixes_the_adapters_of_stages_before_it():
    """MOE-45, RECIPE-22: the adapters themselves, in the recipe's order; nothing is merged."""
    found = edges(made(TWO + stage("sft", adapters=["train-2", "one"], **MIX)))
    assert found["train-3"] == {
        "adapters-1": "train-2.adapter",
        "adapters-2": "train-1.adapter",
        "model": "base.out",
        "train": "dataset.train",
    }
    assert found["attach-3"] == {"model": "base.out", "adapter": "train-3.adapter"}


def test_locks_from_before_adapters_were_mixed_stay_good():
    """LOCK-4: what a stage could not say then is no part of its digest."""
    alone, mixed = read(TWO), read(TWO + stage("sft", adapters=["one"], **MIX))
    shown = [plain(one) for one in mixed.pipeline.train]
    assert "adapters" not in shown[0]
    assert shown[2]["adapters"] == [["adapters-1", "train-1"]]
    assert shown[:2] == [plain(one) for one in alone.pipeline.train]
    other = read(TWO + stage("sft", adapters=["train-2"], **MIX))
    assert other.sections["train"] != mixed.sections["train"]


@pytest.mark.parametrize(
    ("text", "where", "reason"),
    [
        (stage("sft", **MIX), "train[0].adapters", "missing value"),
        (TWO + stage("sft", adapters=[], **MIX), "train[2].adapters", "no adapters"),
        (TWO + stage("sft", adapters=["two"], **MIX), "train[2].adapters[0]", "unknown stage"),
        (TWO + stage("sft", adapters=["base"], **MIX), "train[2].adapters[0]", "unknown stage"),
        (
            stage("sft", adapters=["train-2"], **MIX) + TWO,
            "train[0].adapters[0]",
            "does not stand before",
        ),
        (
            stage("sft", adapter="full") + stage("sft", adapters=["train-1"], **MIX),
            "train[1].adapters[0]",
            "gives no LoRA",
        ),
        (
            stage("soup", parents=["base"]) + stage("sft", adapters=["train-1"], **MIX),
            "train[1].adapters[0]",
            "gives no LoRA",
        ),
        (
            TWO + stage("sft", adapters=["one"], adapter="mixer"),
            "train[2].adapters[0]",
            "of another model",
        ),
        (stage("sft", adapters=["one"]), "train[0].adapters", "unknown key"),
    ],
)
def test_what_cannot_be_mixed_is_refused(text, where, reason):
    """MOE-45."""
    error = refused(text)
    assert error.where == where
    assert reason in error.reason


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (stage("sft", adapter="prefix"), "train[0].adapter"),
        (stage("sft", adapter="prefix") + stage("sft"), "train[1].from"),
        (stage("sft", adapter="mixture") + stage("sft"), "train[1].from"),
        (
            stage("sft", adapter="mixture") + stage("distil", teacher="train-1", from_="base"),
            "train[1].teacher",
        ),
        (
            stage("sft", adapter="prefix") + stage("distil", teacher="train-1", from_="base"),
            "train[1].teacher",
        ),
    ],
)
def test_an_adapter_that_stays_apart_gives_no_model(text, where):
    """RECIPE-18."""
    error = refused(text)
    assert error.where == where
    assert "cannot be put into the weights" in error.reason
    assert "'prefix'" in error.actual or "'mixture'" in error.actual
    assert ("may be the last" in error.advice) is ("'mixture'" in error.actual)


def test_an_adapter_that_can_be_attached_is_judged_beside_its_model_where_it_is_the_last():
    """RECIPE-18, RECIPE-22: nothing else of the pipeline knows."""
    text = stage("sft", adapter="full") + stage("sft", adapter="mixture")
    instance = made(text)
    found = edges(instance)
    assert found["attach-2"] == {"model": "train-1.model", "adapter": "train-2.adapter"}
    assert instance.nodes["attach-2"].step == "attach"
    assert instance.nodes["attach-2"].numerics.cls == "exact-1"
    for node in ("evaluation", "score", "package"):
        assert found[node]["model"] == "attach-2.out"
    assert "attach-2" in read(text).pipeline.nodes
    assert "attach" in lock(read(text)).code
    assert "merge" not in lock(read(text)).code
    alone = made(stage("sft", adapter="mixture") + stage("sft", from_="base"))
    assert not {"attach-1", "merge-1"} & alone.nodes.keys()


def test_a_model_with_an_adapter_beside_its_weights_is_not_quantised():
    """RECIPE-18: told when the recipe is read, before anything is trained."""
    text = '\n[quantise]\nscheme = "w8a16"\n'
    assert read(stage("sft") + text).pipeline.quantise is not None
    error = refused(stage("sft", adapter="mixture") + text)
    assert error.where == "quantise"
    assert error.actual == "adapter 'mixture'"


def test_an_adapter_that_stays_apart_is_a_target_where_nothing_needs_its_model():
    """RECIPE-12, RECIPE-18."""
    instance = made(stage("sft", adapter="prefix") + stage("sft", from_="base"))
    assert "merge-1" not in instance.nodes
    assert "train-1.adapter" in instance.targets
