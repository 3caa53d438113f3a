"""Stages, sets and models that cannot be are refused at their path."""

import pytest

from tests.support.staged import HEAD, STAGES, read, refused, stage

pytestmark = pytest.mark.usefixtures("catalogue")


@pytest.mark.parametrize(
    "keys",
    [
        {"checkpoint_steps": 10},
        {"checkpoint_steps": 10, "max_steps": 10},
        {"checkpoint_steps": 1, "max_steps": 1002},
        {"checkpoint_steps": 2, "max_steps": 9, "adapter": "stateful"},
    ],
)
def test_checkpoints_that_cannot_be_are_refused(keys):
    """RECIPE-24."""
    assert refused(stage("sft", **keys)).where == "train[0].checkpoint_steps"


@pytest.mark.parametrize(
    ("text", "where", "reason"),
    [
        (stage("sft") + stage("distil"), "train[1].teacher", "missing value"),
        (stage("distil", teacher="huge"), "train[0].teacher", "unknown model"),
        (stage("distil", teacher="train-1"), "train[0].teacher", "does not stand before"),
        (stage("distil", teacher="votes"), "train[0].teacher", "unknown model"),
        (stage("distil", teacher=["base"]), "train[0].teacher", "wrong type"),
        (stage("distil", teacher="late") + stage("sft", name="late"), "train[0].teacher", "before"),
        (stage("sft", from_="train-2") + stage("sft"), "train[0].from", "does not stand before"),
        (stage("sft", from_="train-9"), "train[0].from", "unknown model"),
        (stage("soup", parents=["base", "bas"]), "train[0].parents[1]", "unknown model"),
        (stage("soup", parents=[]), "train[0].parents", "no models"),
        (stage("soup", parents="base"), "train[0].parents", "wrong type"),
        (stage("soup", parents=["base"], rows="more"), "train[0].rows", "unknown key"),
        (stage("soup", parents=["base"], adapter="lora"), "train[0].adapter", "unknown key"),
        (stage("reward", rows="asked"), "train[0].reward", "missing value"),
        (stage("reward", rows="asked", reward="r.sh"), "train[0].reward", "not a Python file"),
        (stage("reward", rows="asked", reward="/r.py"), "train[0].reward", "not a path"),
        (stage("distil", teacher="base", log="/log"), "train[0].log", "not a path"),
        (stage("distil", teacher="base", lag="log"), "train[0].lag", "unknown key"),
        (stage("prefer"), "train[0].rows", "rows that are not answers"),
        (stage("prefer", rows="more"), "train[0].rows", "rows of another schema"),
        (stage("sft", rows="votes"), "train[0].rows", "rows of another schema"),
        (stage("sft", rows="vote"), "train[0].rows", "unknown set of rows"),
        (stage("shift"), "train[0].algorithm", "unknown algorithm"),
        (stage("lora"), "train[0].algorithm", "unknown algorithm"),
        (stage("sft", adapter="adamw"), "train[0].adapter", "unknown adapter"),
        (stage("sft", optimiser="lora"), "train[0].optimiser", "unknown optimiser"),
        (stage("sft", momentum="1"), "train[0].momentum", "unknown key"),
        (stage("sft", adapter="full", lora_r=4), "train[0].lora_r", "unknown key"),
        (stage("sft", name="base"), "train[0].name", "another model has"),
        (stage("sft", name="big"), "train[0].name", "another model has"),
        (stage("sft", name="train-2"), "train[0].name", "another model has"),
        (stage("sft", name="a") + stage("sft", name="a"), "train[1].name", "another model has"),
        (stage("sft", name="a.b"), "train[0].name", "not a name"),
        (stage("sft", name="A"), "train[0].name", "not a name"),
    ],
)
def test_a_stage_that_does_not_fit_is_refused_at_its_path(text, where, reason):
    """RECIPE-1, RECIPE-15, RECIPE-16, RECIPE-17, RECIPE-20."""
    error = refused(text)
    assert error.where == where
    assert reason in error.reason


@pytest.mark.parametrize(
    ("keys", "where", "reason"),
    [
        ({}, "reward", "missing value"),
        ({"reward": "r.py", "judge": "base"}, "judge", "nothing uses"),
        ({"reward_by": "model"}, "judge", "missing value"),
        ({"reward_by": "model", "reward": "r.py", "judge": "base"}, "reward", "nothing uses"),
        ({"reward_by": "exact", "judge": "base"}, "judge", "nothing uses"),
        ({"reward_by": "model", "judgge": "base"}, "judgge", "unknown key"),
    ],
)
def test_a_role_without_its_parameter_or_the_other_way_round_is_refused(keys, where, reason):
    """RECIPE-26: at its path; a misspelt one is told first."""
    error = refused(stage("sft") + stage("reinforce", rows="asked", **keys))
    assert error.where == f"train[1].{where}"
    assert reason in error.reason


def test_a_misspelt_role_or_model_gets_a_suggestion():
    """RECIPE-1."""
    assert refused(stage("prefer", rows="votes", juudge="base")).advice == "Did you mean 'judge'?"
    assert refused(stage("distil", teacher="bigg")).advice == "Did you mean 'big'?"


@pytest.mark.parametrize(
    ("before", "after", "where"),
    [
        ('schema = "pairs"', 'schema = "pears"', "sets.votes.schema"),
        ('schema = "pairs"', "", "sets.votes.schema"),
        ('schema = "pairs"', 'schema = "texts"', "sets.votes.text"),
        ('chosen = "{good}"', 'chosen = "good"', "sets.votes.chosen"),
        ('rejected = "{bad}"', "", "sets.votes.rejected"),
        ('fields = ["sum", "kind"]', 'fields = ["sum", "sum"]', "sets.asked.fields"),
        ('fields = ["sum", "kind"]', 'fields = ["{sum}"]', "sets.asked.fields[0]"),
        ('fields = ["sum", "kind"]', 'answer = "{a}"', "sets.asked.answer"),
        ("[sets.more]", "[sets.more-source]", "sets.more-source"),
        ("[sets.more]", "[sets.More]", "sets.More"),
        ("[sets.more]", f"[sets.{'a' * 41}]", f"sets.{'a' * 41}"),
        ("[models.big]", "[models.big-script]", "models.big-script"),
        ("[models.big]", "[models.huge]\nlayers = 1", "models.huge.layers"),
        ('script = "rows.py", ', 'script = "rows.py", schema = "pairs", ', "data.schema"),
    ],
)
def test_a_set_or_model_that_is_not_one_is_refused_at_its_path(before, after, where):
    """RECIPE-1, RECIPE-20."""
    assert before in HEAD
    assert refused(STAGES, HEAD.replace(before, after, 1)).where == where


def test_a_model_has_a_name_of_its_own():
    """RECIPE-16."""
    for name in ("base", "train-1"):
        error = refused(STAGES, HEAD.replace("[models.big]", f"[models.{name}]"))
        assert (error.where, error.reason) == (f"models.{name}", "a name that another model has")


def test_a_text_has_no_system_message():
    votes = HEAD[HEAD.index("[sets.votes]") : HEAD.index("[sets.asked]")]
    texts = '[sets.votes]\nfrom = "path:./t.jsonl"\nschema = "texts"\ntext = "{t}"\n'
    assert read("", HEAD.replace(votes, texts)).pipeline is not None
    error = refused("", HEAD.replace(votes, texts + 'system = "Hm."\n'))
    assert (error.where, error.reason) == ("sets.votes.system", "unknown key")


@pytest.mark.parametrize(
    "name", ["dataset-votes", "rows-asked", "data-asked-source", "data-votes", "model-big",
             "model-big-script", "train-2", "merge-2"],
)  # fmt: skip
def test_a_step_may_not_take_the_name_of_a_node_of_a_set_model_or_stage(name):
    """RECIPE-7."""
    error = refused(STAGES + f'\n[[step]]\nname = "{name}"\nstep = "script"\n')
    assert (error.where, error.reason) == ("step[0].name", "two nodes of one name")
