"""spec/recipe.md, "Stages" and their nodes."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kolm_build.core.catalogue.common import TRAINING
from kolm_build.core.catalogue.table import ADAPTERS, OBJECTIVES, OPTIMISERS
from kolm_build.core.lock import check
from kolm_build.core.recipe import parse_recipe
from kolm_build.core.schemas import SCHEMAS
from kolm_build.errors import StaleLockError
from tests.core.samples import lock
from tests.core.test_pipeline import edges
from tests.support.staged import HEAD, STAGES, TABLE, made, read, refused, stage

pytestmark = pytest.mark.usefixtures("catalogue")


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


@pytest.mark.parametrize("keys", [{"reward": "r.py"}, {"reward_by": "model", "judge": "base"}])
def test_a_role_stands_beside_the_parameter_that_uses_it(keys):
    """RECIPE-26."""
    assert edges(made(stage("reinforce", rows="asked", **keys)))["train-1"].keys() == {
        *("model", "train"),
        *(keys.keys() & {"reward", "judge"}),
    }


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
