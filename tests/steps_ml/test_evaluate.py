"""Outputs are judged by the recipe's metric and verifier."""

from __future__ import annotations

import pytest

from kolm_build.core import strict_json
from kolm_build.steps._conversations import Conversation
from kolm_build.steps._generate import Output
from kolm_build.steps._verifier import Verifier
from kolm_build.steps.evaluate import result_of
from tests.steps_ml.calling import run_step, write_rows
from tests.support.models import tiny_llama

ROW = Conversation(id="sha256:x", messages=(), answer="bone", group="")


@pytest.mark.parametrize(
    ("metric", "text", "label", "correct"),
    [
        ("exact", "bone", None, True),
        ("exact", " bone\n", None, True),
        ("exact", "Bone", None, False),
        ("exact", "bone.", "bone", False),
        ("label", "nonsense", "bone", True),
        ("label", "bone", "lung", False),
    ],
)
def test_the_metric_decides_what_is_right(metric, text, label, correct):
    """EVAL-5."""
    output = Output(text=text, label=label, prompt_tokens=3, output_tokens=2)
    verifier = Verifier.parse("labels", ["bone", "lung"])
    result = result_of(ROW, output, metric=metric, verifier=verifier)
    assert result.correct is correct
    assert result.output == text
    assert result.label_correct is (None if label is None else label == "bone")
    assert result.verified is (text.strip() in {"bone", "lung"})


def test_a_model_is_evaluated_without_labels_too(tmp_path):
    """EVAL-11: the label fields are null."""
    rows = [("low mood", "mind"), ("a dry cough", "lung"), ("a sore hip", "bone")]
    inputs = {
        "model": tiny_llama(tmp_path / "model"),
        "holdout": write_rows(tmp_path / "holdout", "holdout.jsonl", rows),
    }
    ran = run_step("evaluate", tmp_path, inputs=inputs, params={"max_new_tokens": 3})
    lines = (ran.folder() / "results.jsonl").read_bytes().splitlines()
    results = [strict_json.loads(line) for line in lines]
    assert [result["answer"] for result in results] == ["mind", "lung", "bone"]
    for result in results:
        assert (result["label_output"], result["label_correct"]) == (None, None)
        assert result["verified"] is True
        assert 1 <= result["output_tokens"] <= 3
    summary = strict_json.loads((ran.folder() / "summary.json").read_bytes())
    assert summary["label_correct"] == 0
    assert summary["parameters"] == 90_688
    assert ran.events[-1] == {"event": "metric", "name": "verified", "value": "3"}


def test_a_bad_verifier_is_refused_before_the_model_is_loaded(tmp_path):
    params = {"verifier": "regex:("}
    refusal = run_step("evaluate", tmp_path, inputs={}, params=params).refusal()
    assert refusal["where"] == "verifier.regex"


@pytest.mark.parametrize("answer", ["lungs", "Lung", " lung"])
def test_an_answer_outside_the_label_set_is_refused_by_row_and_field(tmp_path, answer):
    """EVAL-19: before the model, which is none here, is read."""
    rows = [("low mood", "mind"), ("a dry cough", answer)]
    inputs = {
        "model": write_rows(tmp_path / "model", "nothing", []),
        "holdout": write_rows(tmp_path / "holdout", "holdout.jsonl", rows),
    }
    asking = {"labels": "bone\nlung\nmind", "metric": "label"}
    refusal = run_step("evaluate", tmp_path, inputs=inputs, params=asking).refusal()
    assert (refusal["code"], refusal["file"]) == ("input.data", "holdout.jsonl")
    assert refusal["where"] == f"row 2 (sha256:{2:064x}), answer"
    assert "'lung'" in refusal["expected"]
    assert refusal["actual"] == repr(answer)
