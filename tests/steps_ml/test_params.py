"""Parameters of the steps that compute are parsed strictly."""

from __future__ import annotations

import dataclasses

import pytest

from kolm_build.errors import InvalidRecordError
from kolm_build.steps._params import EvaluateParams, check_none

pytestmark = [pytest.mark.ml, pytest.mark.filterwarnings("ignore")]


def parse(params):
    from kolm_build.steps import sft
    from kolm_build.steps._stage import Stage

    return Stage.parse(params, sft.TAKE)


def test_every_parameter_has_a_default():
    stage = parse({})
    assert stage.training.learning_rate == 2e-4
    assert stage.training.compute_dtype == "bf16"
    assert stage.change.params.target_modules == ()
    assert stage.change.params.adapter_dtype == "fp32"


def test_decimals_are_text_and_parsed_exactly():
    assert parse({"learning_rate": "1e-3"}).training.learning_rate == 0.001


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("learning_rate", 1, "wrong type"),
        ("learning_rate", "fast", "not a decimal"),
        ("learning_rate", "-0.1", "out of range"),
        ("epochs", "3", "wrong type"),
        ("epochs", 0, "out of range"),
        ("epochs", True, "wrong type"),
        ("max_steps", -1, "out of range"),
        ("schedule", "sawtooth", "unknown value"),
        ("compute_dtype", "fp16", "unknown value"),
        ("lora_dropout", "1", "out of range"),
        ("target_modules", "q_proj,,v_proj", "empty name"),
        ("lr", "1e-3", "unknown key"),
        ("adapter", "glue", "unknown adapter"),
        ("optimiser", "newton", "unknown optimiser"),
    ],
)
def test_a_bad_sft_parameter_is_refused_by_name(name, value, reason):
    with pytest.raises(InvalidRecordError) as caught:
        parse({name: value})
    assert reason in caught.value.reason
    assert caught.value.where == name


def test_a_misspelt_parameter_gets_a_suggestion():
    with pytest.raises(InvalidRecordError) as caught:
        parse({"learning_rat": "1e-3"})
    assert "learning_rate" in (caught.value.advice or "")


def test_module_names_are_a_sorted_set():
    params = parse({"target_modules": "v_proj, q_proj,v_proj"})
    assert params.change.params.target_modules == ("q_proj", "v_proj")


def test_labels_are_lines():
    assert EvaluateParams.parse({"labels": "a\nb c"}).labels == ("a", "b c")
    assert EvaluateParams.parse({}).labels == ()


@pytest.mark.parametrize("labels", ["a\na", "a\n b", "a\n", "\n"])
def test_labels_that_cannot_be_told_apart_are_refused(labels):
    with pytest.raises(InvalidRecordError, match="labels must differ"):
        EvaluateParams.parse({"labels": labels})


def test_the_label_metric_needs_labels():
    with pytest.raises(InvalidRecordError, match="needs labels"):
        EvaluateParams.parse({"metric": "label"})


def test_merge_takes_no_parameter():
    check_none({})
    with pytest.raises(InvalidRecordError, match="unknown key"):
        check_none({"weight": "0.5"})


def test_parameters_are_frozen_values():
    with pytest.raises(dataclasses.FrozenInstanceError):
        parse({}).training.epochs = 2
