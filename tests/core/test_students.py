"""Students of a teacher's kept logits, and of recorded answers in its place."""

import pytest

from kolm_build.core.plain import plain
from tests.core.samples import lock
from tests.core.test_pipeline import edges
from tests.support.staged import HEAD, STAGES, TABLE, made, read, refused, stage

pytestmark = pytest.mark.usefixtures("catalogue")


def test_students_of_one_teacher_share_its_logits():
    """RECIPE-29: one derivation, which whoever asks first is named after."""
    text = (
        stage("sft", name="taught")
        + stage("listen", teacher="taught", from_="big", adapter="full")
        + stage("listen", teacher="taught", from_="base", adapter="full", epochs=3)
        + stage("listen", teacher="taught", from_="base", adapter="full", teacher_top_k=8)
        + stage("listen", teacher="big", from_="base", adapter="full")
        + stage("listen", teacher="taught", from_="base", adapter="full", rows="more")
    )
    instance = made(text)
    found = edges(instance)
    kept = [name for name, node in instance.nodes.items() if node.step == "teacher-logits"]
    assert kept == ["logits-2", "logits-4", "logits-5", "logits-6"]
    assert found["logits-2"] == {"model": "merge-1.out", "train": "dataset.train"}
    assert found["logits-6"]["train"] == "dataset-more.train"
    assert found["logits-5"]["model"] == "model-big.out"
    for student in ("train-2", "train-3"):
        assert found[student]["logits"] == "logits-2.out"
        assert "teacher" not in found[student]
    assert instance.nodes["logits-2"].params == (("teacher_top_k", 64), ("temperature", "2"))
    assert instance.nodes["logits-4"].params == (("teacher_top_k", 8), ("temperature", "2"))
    assert instance.nodes.keys() <= set(read(text).pipeline.nodes)
    assert "teacher-logits" in lock(read(text), steps=TABLE).code
    assert "teacher-logits" not in lock(read(), steps=TABLE).code


def test_a_segment_of_a_student_learns_from_the_same_logits():
    """RECIPE-24, RECIPE-29."""
    found = edges(made(stage("listen", teacher="big", max_steps=9, checkpoint_steps=5)))
    assert found["train-1-after-5"]["logits"] == found["train-1"]["logits"] == "logits-1.out"


RECORDED = """
[sets.said]
from = "path:./said.jsonl"
schema = "answers"
prompt = "{q}"
answer = "{a}"

[sets.said.provenance]
vendor = "Example Ltd"
model = "example-large-2"
date = "2026-03-31"
licence = "LicenseRef-example-terms"
call_log = "path:./calls.jsonl"
"""


def test_recorded_answers_stand_in_the_place_of_a_teacher():
    """DATA-61, DIST-89: all that is said of them is in the derivation."""
    instance = made(stage("repeat", rows="said"), HEAD + RECORDED)
    assert edges(instance)["train-1"] == {"model": "base.out", "train": "dataset-said.train"}
    assert edges(instance)["dataset-said"]["call_log"] == "path:./calls.jsonl"
    given = dict(instance.nodes["dataset-said"].params)
    assert {name: value for name, value in given.items() if name.startswith("provenance_")} == {
        "provenance_date": "2026-03-31",
        "provenance_licence": "LicenseRef-example-terms",
        "provenance_model": "example-large-2",
        "provenance_vendor": "Example Ltd",
    }
    recipe = read(stage("repeat", rows="said"), HEAD + RECORDED)
    (log,) = [one for one in recipe.sources if one.name == "data-said.call_log"]
    assert (log.kind, log.licence) == ("data", "LicenseRef-example-terms")
    later = RECORDED.replace("2026-03-31", "2026-04-01")
    other = made(stage("repeat", rows="said"), HEAD + later)
    assert other.digests["train-1"] != instance.digests["train-1"]


@pytest.mark.parametrize(
    ("keys", "where", "reason"),
    [
        ({}, "train[0].teacher", "missing value"),
        ({"rows": "asked"}, "train[0].teacher", "missing value"),
        ({"rows": "sad"}, "train[0].rows", "unknown set of rows"),
        ({"rows": "more"}, "train[0].rows", "recorded answers of nobody"),
        ({"rows": "said", "teacher": "base"}, "train[0].rows", "rows of another schema"),
    ],
)
def test_a_stage_without_a_teacher_needs_recorded_answers(keys, where, reason):
    """DIST-89."""
    error = refused(stage("repeat", **keys), HEAD + RECORDED)
    assert error.where == where
    assert reason in error.reason


@pytest.mark.parametrize(
    ("before", "after", "where"),
    [
        ('vendor = "Example Ltd"\n', "", "vendor"),
        ("Example Ltd", "", "vendor"),
        ("Example Ltd", " Example", "vendor"),
        ("example-large-2", "a\\nb", "model"),
        ("2026-03-31", "2026-02-30", "date"),
        ("2026-03-31", "31.3.2026", "date"),
        ("2026-03-31", "20260331", "date"),
        ('"2026-03-31"', "2026-03-31", "date"),
        ("LicenseRef-example-terms", "x" * 201, "licence"),
        ('call_log = "path:./calls.jsonl"', "", "call_log"),
        ("path:./calls.jsonl", "/calls.jsonl", "call_log"),
        ("vendor =", "vendors =", "vendors"),
    ],
)
def test_a_provenance_that_is_not_whole_is_refused_at_its_path(before, after, where):
    """DATA-60."""
    error = refused(stage("repeat", rows="said"), HEAD + RECORDED.replace(before, after))
    assert error.where in (f"sets.said.provenance.{where}", "sets.said.provenance.vendor")


def test_the_data_that_models_are_measured_on_has_no_provenance():
    """DATA-60."""
    head = HEAD.replace('answer = "{label}" }', 'answer = "{label}", provenance = {} }')
    assert refused(STAGES, head).where == "data.provenance"


def test_what_a_recipe_does_not_say_is_in_no_digest_of_its_sections():
    """RECIPE-28: a lock from before there was a provenance is no stale one."""
    for _, rows in read().pipeline.sets:
        assert plain(rows).keys() == {"origin", "format", "schema", "system", "parts", "group"}
    (said,) = [rows for name, rows in read(head=HEAD + RECORDED).pipeline.sets if name == "said"]
    assert "provenance" in plain(said)
