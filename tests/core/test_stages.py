"""spec/recipe.md, "Stages" and their nodes, with a small catalogue of the tests' own."""

import re
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kolm_build.core import stage_reader
from kolm_build.core.catalogue.algorithm import (
    ADAPTER,
    OPTIMISER,
    Algorithm,
    Choice,
    Decimal,
    Integer,
    Role,
)
from kolm_build.core.catalogue.common import TRAINING
from kolm_build.core.catalogue.table import ADAPTERS, ALGORITHMS, OBJECTIVES, OPTIMISERS
from kolm_build.core.lock import check
from kolm_build.core.pipeline import instantiate
from kolm_build.core.plain import plain
from kolm_build.core.recipe import parse_recipe
from kolm_build.core.schemas import SCHEMAS
from kolm_build.errors import InvalidRecordError, StaleLockError
from kolm_build.steps.table import INHERIT, STEPS, TRAINED, StepSpec
from tests.core.samples import PLATFORM, digest, lock
from tests.core.test_pipeline import edges


def row(name, **more):
    facts = {
        "family": "preference",
        "title": name,
        "paper": "none",
        "minimises": "nothing",
        "backing": "none",
        "oracle": "none",
        "passes": "none",
        "schema": "answers",
    }
    return Algorithm(**facts | {"id": name} | more)


TEACHER = Role(name="teacher", kind="model", help="a model to learn from")
JUDGE = Role(name="judge", kind="model", required=False, help="a model that judges")
REWARD = Role(name="reward", kind="code", help="a file with reward functions")
LOG = Role(name="log", kind="data", required=False, help="what a teacher answered")
KEPT = Role(name="teacher", kind="logits", help="a model that reads once for all students")
ASKED = Role(name="teacher", kind="model", recorded=True, help="a model to ask")
PARENTS = Role(name="parents", kind="models", help="models to merge")
MIXED = Role(name="adapters", kind="adapters", help="stages whose adapters are mixed")
RATE = Decimal(name="learning_rate", default="0.5", help="a rate of its own")

BY = Choice(name="reward_by", options=("exact", "file", "model"), default="file", help="whose")
AGAIN = Integer(name="iterations", default=1, least=1, help="steps with the same completions")
HEAT = Decimal(name="temperature", default="2", most="100", help="of both")
TOP_K = Integer(name="teacher_top_k", default=64, least=1, help="tokens that are kept")
BY_ROLES = (
    replace(REWARD, required=False, used_with=("reward_by", "file")),
    replace(JUDGE, used_with=("reward_by", "model")),
)

ROWS = (
    row("sft", step="sft"),
    row("prefer", step="prefer", schema="pairs", parameters=(RATE,), roles=(JUDGE,)),
    row("distil", step="distil", roles=(TEACHER, LOG)),
    row("listen", step="distil", roles=(KEPT,), parameters=(HEAT, TOP_K)),
    row("repeat", step="distil", roles=(ASKED,), schema="prompts"),
    row("reward", step="reward", schema="prompts", roles=(REWARD,)),
    row("reinforce", step="reward", schema="prompts", parameters=(BY, AGAIN), roles=BY_ROLES),
    row("soup", step="soup", schema="none", trains=False, roles=(PARENTS,)),
    ALGORITHMS["lora"],
    ALGORITHMS["full"],
    row("prefix", axis=ADAPTER, mergeable=False),
    row("mixture", axis=ADAPTER, mergeable=False, attachable=True),
    row("mixer", axis=ADAPTER, mergeable=False, attachable=True, roles=(MIXED,)),
    row("stateful", axis=ADAPTER, resumable=False),
    ALGORITHMS["adamw"],
    row("sgd", axis=OPTIMISER, parameters=(Decimal(name="momentum", default="0.9", help="m"),)),
)
TABLE = {
    **STEPS,
    **{
        one: StepSpec(module=one, outputs=TRAINED, numerics=INHERIT) for one in ("prefer", "reward")
    },
    "distil": StepSpec(module="distil", outputs=TRAINED, numerics=INHERIT),
    "soup": StepSpec(module="soup", outputs=("model",), numerics=INHERIT),
}

HEAD = """
version = 1
name = "staged"
base = { script = "model.py", format = "safetensors" }
data = { script = "rows.py", prompt = "Say {text}", answer = "{label}" }
evaluate = {}

[score]
size_budget_bytes = 1
latency_budget_us = 1
cost_budget_microusd = 1
device = { name = "cpu", flops_per_s = 1, bytes_per_s = 1, microusd_per_hour = 0 }

[sets.votes]
from = "path:./votes.jsonl"
schema = "pairs"
prompt = "{q}"
chosen = "{good}"
rejected = "{bad}"

[sets.asked]
from = "https://example.org/asked.jsonl"
script = "asked.py"
schema = "prompts"
prompt = "{q}"
fields = ["sum", "kind"]

[sets.more]
from = "path:./more.csv"
format = "csv"
schema = "answers"
system = "Be brief."
prompt = "{q}"
answer = "{a}"
group = "who"

[models.big]
from = "hf:org/big@0123456789abcdef0123456789abcdef01234567"
files = ["*.safetensors"]
format = "safetensors"
"""
STAGES = """
[[train]]
algorithm = "sft"
name = "taught"

[[train]]
algorithm = "prefer"
rows = "votes"
judge = "train-1"
"""


@pytest.fixture(autouse=True)
def _catalogue(monkeypatch):
    for axis, name in (("objective", "OBJECTIVES"), ("adapter", "ADAPTERS")):
        rows = {one.id: one for one in ROWS if one.axis == axis}
        monkeypatch.setattr(stage_reader, name, MappingProxyType(rows))
    optimisers = {one.id: one for one in ROWS if one.axis == OPTIMISER}
    monkeypatch.setattr(stage_reader, "OPTIMISERS", MappingProxyType(optimisers))


def read(text=STAGES, head=HEAD):
    return parse_recipe(head + text, file="kolm.toml")


def made(text=STAGES, head=HEAD):
    recipe = read(text, head)
    return instantiate(
        recipe,
        lock(recipe, steps=TABLE),
        steps=TABLE,
        platform=PLATFORM,
        story=lambda _: digest("story"),
    )


def refused(text, head=HEAD):
    with pytest.raises(InvalidRecordError) as caught:
        read(text, head)
    assert caught.value.file == "kolm.toml"
    return caught.value


def stage(algorithm, **keys):
    lines = [f"{key.rstrip('_')} = {value!r}" for key, value in keys.items()]
    return "\n".join(["", "[[train]]", f'algorithm = "{algorithm}"', *lines, ""])


def test_stages_chain_and_sets_stand_beside_the_data():
    """RECIPE-9, RECIPE-21, RECIPE-22."""
    found = edges(made())
    assert found["dataset-votes"] == {"against": "dataset.compared", "rows": "path:./votes.jsonl"}
    assert found["rows-asked"] == {"script": "path:asked.py", "source": "data-asked-source.out"}
    assert found["dataset-asked"]["rows"] == "rows-asked.out"
    assert found["model-big"] == {"source": "model-big-source.out"}
    assert found["train-1"] == {"model": "base.out", "train": "dataset.train"}
    assert found["merge-1"] == {"model": "base.out", "adapter": "train-1.adapter"}
    assert found["train-2"] == {
        "model": "merge-1.out",
        "train": "dataset-votes.train",
        "judge": "merge-1.out",
    }
    assert found["evaluation"]["model"] == found["package"]["model"] == "merge-2.out"


def test_a_stage_may_start_from_any_model_before_it():
    """RECIPE-16, RECIPE-22."""
    text = STAGES + stage("sft", rows="more", from_="base") + stage("sft", from_="big")
    found = edges(made(text + stage("sft", from_="taught")))
    assert found["train-3"] == {"model": "base.out", "train": "dataset-more.train"}
    assert found["train-4"]["model"] == "model-big.out"
    assert found["train-5"]["model"] == "merge-1.out"


def test_roles_are_inputs_and_files_are_locked():
    """LOCK-15, RECIPE-19, RECIPE-22."""
    text = (
        stage("distil", teacher="big", log="path:./log", adapter="full")
        + stage("reward", rows="asked", reward="reward.py")
        + stage("soup", parents=["train-1", "train-2", "base", "train-2"])
    )
    instance = made(text)
    found = edges(instance)
    assert found["train-1"]["teacher"] == "model-big.out"
    assert found["train-1"]["log"] == "path:./log"
    assert found["train-2"]["reward"] == "path:reward.py"
    assert found["train-3"] == {
        "model": "merge-2.out",
        "parents-1": "train-1.model",
        "parents-2": "merge-2.out",
        "parents-3": "base.out",
        "parents-4": "merge-2.out",
    }
    sources = {one.name: (one.kind, one.section, one.text) for one in read(text).sources}
    assert sources["train-1.log"] == ("data", "train", "path:./log")
    assert sources["train-2.reward"] == ("code", "train", "path:reward.py")
    assert sources["data-asked-script"] == ("code", "sets", "path:asked.py")
    assert sources["model-big"][:2] == ("weights", "models")
    assert set(instance.contents.values()) == {
        one.text for one in read(text).sources if one.is_local
    }


def test_what_a_stage_trained_is_an_adapter_to_merge_or_the_model_itself():
    """RECIPE-22."""
    instance = made(stage("sft", adapter="full") + stage("soup", parents=["base"]))
    assert dict(instance.nodes["train-1"].outputs).keys() == {"metrics", "model", "trace"}
    assert dict(instance.nodes["train-2"].outputs).keys() == {"model"}
    assert not {"merge-1", "merge-2"} & instance.nodes.keys()
    assert edges(instance)["evaluation"]["model"] == "train-2.model"
    assert "merge" not in lock(read(stage("sft", adapter="full"))).code
    assert dict(made().nodes["train-1"].outputs).keys() == {"adapter", "metrics", "trace"}


def test_the_parameters_are_those_of_training_and_of_the_three_rows():
    """RECIPE-11, RECIPE-15."""
    text = stage("prefer", rows="votes", optimiser="sgd", adapter="full", momentum="0.50")
    params = made(text).nodes["train-1"].params
    own = ["adapter", "optimiser", "momentum", "weights_dtype"]
    assert [name for name, _ in params] == sorted([one.name for one in TRAINING] + own)
    given = dict(params)
    assert (given["adapter"], given["optimiser"], given["momentum"]) == ("full", "sgd", "0.5")
    assert given["learning_rate"] == "0.5"
    assert dict(made().nodes["train-1"].params)["learning_rate"] == "0.0002"
    assert made(stage("soup", parents=["base"])).nodes["train-1"].params == ()


def test_a_set_has_the_keys_of_its_schema():
    """RECIPE-11, RECIPE-21."""
    nodes = made().nodes
    assert dict(nodes["dataset-asked"].params) == {
        "fields": "kind\nsum",
        "format": "jsonl",
        "group": "",
        "leakage": "refuse",
        "modulus": 5,
        "prompt": "{q}",
        "reference": "",
        "schema": "prompts",
        "split_seed": "0",
        "system": "",
    }
    assert dict(nodes["dataset-votes"].params)["margin"] == ""


def test_changing_the_second_stage_changes_nothing_of_the_first():
    """RECIPE-23."""
    before, after = made(), made(STAGES + 'learning_rate = "0.1"\n')
    same = {name for name in before.nodes if before.digests[name] == after.digests.get(name)}
    changed = before.nodes.keys() - same
    assert {"train-1", "merge-1", "dataset-votes"} <= same
    assert changed == {"train-2", "merge-2", "evaluation", "score", "gate", "package"}


def test_a_stage_with_checkpoints_is_a_chain_of_segments():
    """RECIPE-24."""
    plain = made(stage("sft", max_steps=25))
    instance = made(stage("sft", max_steps=25, checkpoint_steps=10))
    found = edges(instance)
    given = {"model": "base.out", "train": "dataset.train"}
    assert found["train-1-after-10"] == given
    assert found["train-1-after-20"] == {**given, "checkpoint": "train-1-after-10.checkpoint"}
    assert found["train-1"] == {**given, "checkpoint": "train-1-after-20.checkpoint"}
    nodes = instance.nodes
    assert dict(nodes["train-1"].outputs) == dict(plain.nodes["train-1"].outputs)
    assert nodes["train-1"].params == plain.nodes["train-1"].params
    for step in (10, 20):
        node = nodes[f"train-1-after-{step}"]
        assert dict(node.params) == {**dict(nodes["train-1"].params), "stop_after": step}
        assert [name for name, _ in node.outputs] == ["checkpoint"]


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


def test_checkpoints_stand_between_completions_and_not_within():
    """RECIPE-27, RL-31."""
    keys = {"rows": "asked", "reward": "r.py", "max_steps": 9, "iterations": 2}
    instance = made(stage("reinforce", **keys, checkpoint_steps=4))
    assert {"train-1-after-4", "train-1-after-8"} <= instance.nodes.keys()
    error = refused(stage("reinforce", **keys, checkpoint_steps=3))
    assert error.where == "train[0].checkpoint_steps"
    assert error.actual == "checkpoint_steps = 3, iterations = 2"


def test_a_stage_that_is_not_named_is_not_depended_on():
    """RECIPE-23."""
    text = stage("sft") + stage("sft", from_="base")
    before = made(text)
    after = made(text.replace('"sft"', '"sft"\nepochs = 2', 1))
    assert before.digests["train-2"] == after.digests["train-2"]
    assert before.digests["train-1"] != after.digests["train-1"]


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


@st.composite
def _chains(draw):
    """Stages that start from, and listen to, any models before them; and the number of one."""
    count = draw(st.integers(1, 5))
    stages = []
    for number in range(count):
        before = st.sampled_from(["base", "big", *(f"train-{n + 1}" for n in range(number))])
        adapter = draw(st.sampled_from(["lora", "full"]))
        keys = {"from_": draw(before), "adapter": adapter, "epochs": 1}
        stages.append(("distil", keys | {"teacher": draw(before)}))
    return stages, draw(st.integers(0, count - 1))


@given(_chains())
@settings(max_examples=60)
def test_a_change_reaches_what_follows_from_it_and_nothing_else(chain):
    """RECIPE-13, RECIPE-23."""
    stages, index = chain
    before = made("".join(stage(name, **keys) for name, keys in stages))
    name, keys = stages[index]
    stages[index] = name, keys | {"epochs": 2}
    after = made("".join(stage(name, **keys) for name, keys in stages))
    changed = {name for name in before.nodes if before.digests[name] != after.digests[name]}
    assert changed == _follow(before, f"train-{index + 1}")


def _follow(instance, node):
    """The node and all that needs it."""
    names = {digest: name for name, digest in instance.digests.items()}
    found = {node}
    for name, derivation in instance.nodes.items():
        if found & {names[need.derivation] for need in derivation.needs}:
            found.add(name)
    return found | {"package"} if "gate" in found else found


def test_a_label_of_a_stage_is_no_part_of_its_derivation():
    assert made().digests == made(STAGES.replace('name = "taught"', "")).digests


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


@pytest.mark.parametrize("keys", [{"reward": "r.py"}, {"reward_by": "model", "judge": "base"}])
def test_a_role_stands_beside_the_parameter_that_uses_it(keys):
    """RECIPE-26."""
    assert edges(made(stage("reinforce", rows="asked", **keys)))["train-1"].keys() == {
        *("model", "train"),
        *(keys.keys() & {"reward", "judge"}),
    }


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


REWARDED = [one for one in OBJECTIVES.values() if "reward_by" in {p.name for p in one.parameters}]


@pytest.mark.parametrize("algorithm", REWARDED, ids=lambda one: one.id)
def test_whatever_draws_rewards_has_a_role_for_what_gives_them(algorithm):
    """RECIPE-26, RL-10: for a file and for a model; a rule needs none."""
    (words,) = (one.options for one in algorithm.parameters if one.name == "reward_by")
    needed = {
        word: [role.name for role in algorithm.roles if role.needed({"reward_by": word})]
        for word in words
    }
    rules = {"exact": [], "label": [], "regex": []}
    assert needed == {"file": ["reward"], "model": ["reward_model"], **rules}


def test_a_misspelt_role_or_model_gets_a_suggestion():
    """RECIPE-1."""
    assert refused(stage("prefer", rows="votes", juudge="base")).advice == "Did you mean 'judge'?"
    assert refused(stage("distil", teacher="bigg")).advice == "Did you mean 'big'?"


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


SMALL = """
[models.small]
of = "big"
script = "small.py"
format = "safetensors"
"""


@pytest.mark.parametrize("name", ["small", "a"])
@pytest.mark.parametrize(("of", "node"), [("base", "base.out"), ("big", "model-big.out")])
def test_a_script_makes_a_model_of_another(name, of, node):
    """RECIPE-36: whatever the order of the two names."""
    small = SMALL.replace("small]", f"{name}]").replace('of = "big"', f'of = "{of}"')
    found = edges(made(stage("sft", from_=name), HEAD + small))
    assert found[f"model-{name}-source"] == {"source": node, "script": "path:small.py"}
    assert found[f"model-{name}"] == {"source": f"model-{name}-source.out"}
    assert found["train-1"]["model"] == f"model-{name}.out"


@pytest.mark.parametrize(
    ("before", "after", "where", "reason"),
    [
        ('of = "big"', 'of = "small"', "models.small.of", "unknown model"),
        ('of = "big"', 'of = "train-1"', "models.small.of", "unknown model"),
        ('of = "big"', 'of = "model-big"', "models.small.of", "unknown model"),
        ('script = "small.py"', 'from = "path:./x"', "models.small.of", "without a script"),
        ("script =", 'from = "path:./x"\nscript =', "models.small.script", "both"),
    ],
)
def test_a_model_of_another_that_is_not_one_is_refused(before, after, where, reason):
    """RECIPE-36."""
    error = refused(stage("sft"), HEAD + SMALL.replace(before, after))
    assert error.where == where
    assert reason in error.reason


def test_a_model_of_a_model_of_another_is_refused():
    """RECIPE-36."""
    third = SMALL.replace("small]", "third]").replace('of = "big"', 'of = "small"')
    assert refused(stage("sft"), HEAD + SMALL + third).where == "models.third.of"


def test_a_base_is_made_of_no_other_model():
    """RECIPE-36."""
    head = HEAD.replace('base = { script = "model.py"', 'base = { of = "big", script = "model.py"')
    assert refused(stage("sft"), head).where == "base.of"


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


def test_a_step_may_use_what_a_set_a_model_or_a_stage_gives():
    """RECIPE-6."""
    inputs = '{ a = "dataset-votes.holdout", b = "model-big", c = "train-2.trace" }'
    text = f'\n[[step]]\nname = "x"\nstep = "script"\ninputs = {inputs}\n'
    assert edges(made(STAGES + text))["x"] == {
        "a": "dataset-votes.holdout",
        "b": "model-big.out",
        "c": "train-2.trace",
    }


def test_the_recipe_of_the_docs_is_a_recipe(monkeypatch):
    monkeypatch.undo()
    page = (Path(__file__).parents[2] / "docs" / "stages.md").read_text("utf-8")
    text, more = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    assert [one.algorithm for one in parse_recipe(text + more).pipeline.train] == [
        *("sft", "dpo", "kd", "kd-cached", "seq-kd")
    ]
    pipeline = parse_recipe(text).pipeline
    assert [one.name for one in pipeline.train] == ["taught", "train-2"]
    rows = {line.split("`")[1] for line in page.splitlines() if line.startswith("| `")}
    assert rows == set(SCHEMAS)


def test_no_two_nodes_of_a_pipeline_have_one_name():
    names = read(STAGES + stage("soup", parents=["base"])).pipeline.nodes
    assert len(set(names)) == len(names)
    assert set(made().nodes) <= set(read().pipeline.nodes)


def test_a_lock_tells_which_of_the_new_sections_changed():
    """LOCK-4."""
    locked = lock(read(), steps=TABLE)
    changed = HEAD.replace('rejected = "{bad}"', 'rejected = "{worse}"')
    with pytest.raises(StaleLockError, match=r"section \[sets\] has changed"):
        check(read(STAGES, changed), locked)
    assert "sets" not in read("", HEAD[: HEAD.index("[sets.votes]")]).sections


def test_every_adapter_and_objective_of_the_catalogue_has_keys_of_its_own():
    """RECIPE-15."""
    stages = {"algorithm", "name", "from", "rows", "adapter", "optimiser"}
    shared = stages | {one.name for one in TRAINING}
    for objective in OBJECTIVES.values():
        roles = {role.name for role in objective.roles}
        roles |= {role.name for adapter in ADAPTERS.values() for role in adapter.roles}
        own = {one.name for one in objective.parameters}
        assert not roles & (shared | own | {"model", "train"}), objective.id
        assert not own & stages, objective.id
        for other in (*ADAPTERS.values(), *OPTIMISERS.values()):
            names = {one.name for one in other.parameters}
            assert not names & (stages | roles | own), (objective.id, other.id)
