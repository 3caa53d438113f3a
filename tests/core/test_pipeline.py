"""spec/recipe.md, "Nodes": what a recipe and its lock become."""

from dataclasses import replace

import pytest

from kolm_build.core.derivation import ContentInput, OutputInput
from kolm_build.core.instantiation.instantiate import instantiate, step_names
from kolm_build.core.numerics import Numerics
from kolm_build.errors import InvalidRecordError, StaleLockError, UsageError
from kolm_build.steps.table import STEPS
from tests.core.samples import FULL, PLATFORM, STEPS_ONLY, TINY, digest, environment, lock, recipe


def made(text=FULL, *, story=lambda _: digest("story"), **changes):
    parsed = recipe(text)
    arguments = {"steps": STEPS, "platform": PLATFORM, "story": story} | changes
    return instantiate(parsed, lock(parsed), **arguments)


def edges(instance):
    """Node → role → node.output, or the source of a local path."""
    names = {digest: name for name, digest in instance.digests.items()}
    return {
        name: {
            role: (
                f"{names[one.derivation]}.{one.output}"
                if isinstance(one, OutputInput)
                else instance.contents.get(one.content, str(one.content))
            )
            for role, one in derivation.inputs
        }
        for name, derivation in instance.nodes.items()
    }


def test_the_pipeline_has_these_nodes_and_edges():
    """RECIPE-9."""
    assert edges(made()) == {
        "base-source": {},
        "base": {"source": "base-source.out"},
        "data-source": {},
        "rows": {"script": "path:rows.py", "source": "data-source.out"},
        "dataset": {"rows": "rows.out"},
        "base-evaluation": {"holdout": "dataset.holdout", "model": "base.out"},
        "train-1": {"model": "base.out", "train": "dataset.train"},
        "merge-1": {"adapter": "train-1.adapter", "model": "base.out"},
        "evaluation": {"holdout": "dataset.holdout", "model": "merge-1.out"},
        "score": {
            "base": "base-evaluation.out",
            "evaluation": "evaluation.out",
            "model": "merge-1.out",
        },
        "gate": {"evaluation": "evaluation.out", "score": "score.out"},
        "package": {
            "base": "base-evaluation.out",
            "evaluation": "evaluation.out",
            "gate": "gate.out",
            "holdout": "dataset.holdout",
            "model": "merge-1.out",
            "score": "score.out",
            "story": str(digest("story")),
        },
    }


def test_a_base_by_script_and_two_trainings_chain():
    """RECIPE-5, RECIPE-9."""
    found = edges(made(TINY))
    assert found["base-source"] == {"script": "path:model.py"}
    assert found["base"] == {"source": "base-source.out"}
    assert found["rows"] == {"script": "path:rows.py"}
    assert found["train-2"] == {"model": "merge-1.out", "train": "dataset.train"}
    assert found["merge-2"] == {"model": "merge-1.out", "adapter": "train-2.adapter"}
    assert found["evaluation"]["model"] == found["package"]["model"] == "merge-2.out"


def test_local_paths_are_contents_that_must_be_there():
    text = TINY.replace('data = { script = "rows.py"', 'data = { from = "path:./r.jsonl"')
    instance = made(text)
    assert edges(instance)["dataset"] == {"rows": "path:./r.jsonl"}
    assert set(instance.contents.values()) == {"path:model.py", "path:./r.jsonl"}
    assert "rows" not in instance.nodes
    assert instance.contents[digest("path:model.py")] == "path:model.py"


def test_no_training_is_the_base_as_it_is():
    text = TINY.replace("[[train]]", "").replace('algorithm = "sft"', "")
    text = text.replace('learning_rate = "0.01"', "")
    instance = made(text)
    assert edges(instance)["evaluation"]["model"] == "base.out"
    evaluations = [instance.nodes["base-evaluation"], instance.nodes["evaluation"]]
    content = {need: digest("x") for need in evaluations[0].needs}
    assert len({one.resolve(content).resolved_digest for one in evaluations}) == 1


def test_exact_steps_do_not_depend_on_numerics_or_platform():
    """RECIPE-10."""
    one = made()
    other = made(
        FULL.replace("threads = 2", "threads = 7"), platform=replace(PLATFORM, isa="x86_64-v3")
    )
    same = {name for name in one.nodes if one.nodes[name] == other.nodes[name]}
    assert same == {"base-source", "base", "data-source", "rows", "dataset"}
    for name, derivation in one.nodes.items():
        inherits = STEPS[derivation.step].numerics == "inherit"
        assert derivation.numerics.cls == ("native-1" if inherits else "exact-1"), name
        assert (derivation.platform is not None) is inherits


def test_a_step_without_distributions_does_not_depend_on_the_environment():
    """DRV-5."""
    for derivation in made().nodes.values():
        expected = environment().digest if STEPS[derivation.step].environment else None
        assert derivation.environment == expected


def test_every_parameter_is_written_down():
    """RECIPE-11."""
    nodes = made().nodes
    assert dict(nodes["train-1"].params)["lora_alpha"] == 32
    assert dict(nodes["dataset"].params) == {
        "answer": "{label}",
        "format": "jsonl",
        "group": "category",
        "leakage": "refuse",
        "modulus": 5,
        "prompt": "Diagnosis: {text}",
        "schema": "answers",
        "split_seed": "1",
        "system": "You are a coding assistant.",
    }
    assert dict(nodes["evaluation"].params)["labels"] == "skin\nmental"
    assert dict(nodes["rows"].params) == {"entry": "rows.py", "per_class": 40}
    assert dict(nodes["package"].params) == {"name": "triage"}
    assert dict(nodes["base"].params) == {"dtype": "bf16"}
    assert dict(made(TINY).nodes["base"].params) == {}


def test_what_is_fetched_is_fixed_by_the_lock():
    """DRV-7."""
    nodes = made().nodes
    for name in ("base-source", "data-source"):
        assert nodes[name].is_fixed
        assert not nodes[name].inputs
    fixed = {name for name, derivation in nodes.items() if derivation.is_fixed}
    assert fixed == {"base-source", "data-source"}
    assert made(STEPS_ONLY).nodes["second"].is_fixed


def test_generic_steps_come_after_what_they_need():
    instance = made(STEPS_ONLY)
    assert list(instance.nodes) == ["first", "second", "third"]
    assert edges(instance)["third"] == {
        "left": "first.out",
        "right": "second.out",
        "script": "path:./late.py",
    }
    assert edges(instance)["first"] == {"rows": "path:./rows", "script": "path:./early.py"}


def test_targets_are_what_nothing_needs():
    """RECIPE-12."""
    assert list(made().targets) == ["package"]
    assert list(made(STEPS_ONLY).targets) == ["third"]
    both = FULL + '\n[[step]]\nname = "x"\nstep = "script"\ninputs = { a = "dataset.report" }\n'
    assert set(made(both).targets) == {"package", "x"}


def test_every_node_comes_after_what_it_needs_and_knows_its_digest():
    instance = made()
    seen = set()
    for name, derivation in instance.nodes.items():
        assert {need.derivation for need in derivation.needs} <= seen
        assert instance.digests[name] == derivation.digest
        seen.add(derivation.digest)
    assert list(instance.derivations.values()) == list(instance.nodes.values())


def test_instantiation_is_a_function_of_its_arguments():
    """RECIPE-13."""
    assert made() == made()


def test_the_story_is_told_of_everything_above_the_package_in_order():
    told = {}
    made(story=lambda above: told.update(above) or digest("story"))
    assert set(told) == set(made().nodes) - {"package"}
    assert list(told)[-1] == "gate"
    unrelated = FULL + '\n[[step]]\nname = "x"\nstep = "script"\n'
    told.clear()
    made(unrelated, story=lambda above: told.update(above) or digest("story"))
    assert "x" not in told


def test_without_a_story_there_is_no_package():
    instance = made(story=None)
    assert "package" not in instance.nodes
    assert list(instance.targets) == ["gate"]


def test_an_output_is_found_by_its_name():
    instance = made()
    digests = instance.digests
    assert instance.find("merge-1") == OutputInput(derivation=digests["merge-1"], output="out")
    assert instance.find("dataset.train").output == "train"
    for wrong in ("merge", "dataset", "dataset.trainn", "path:./x", "No"):
        with pytest.raises(UsageError):
            instance.find(wrong)
    with pytest.raises(UsageError) as caught:
        instance.find("merge")
    assert caught.value.advice == "Did you mean 'merge-1'?"


def test_the_steps_of_a_recipe_are_those_whose_code_is_locked():
    assert step_names(recipe(STEPS_ONLY), STEPS) == ("fetch", "script")
    assert set(step_names(recipe(TINY), STEPS)) == {
        *("dataset", "evaluate", "gate", "import-model", "merge", "package", "score"),
        *("script", "sft"),
    }
    assert {node.step for node in made().nodes.values()} == set(step_names(recipe(), STEPS))


def test_a_step_that_does_not_exist_is_refused_with_a_suggestion():
    wrong = recipe(STEPS_ONLY.replace('step = "fetch"', 'step = "fetsh"'))
    with pytest.raises(InvalidRecordError) as caught:
        step_names(wrong, STEPS)
    assert (caught.value.where, caught.value.advice) == ("step[2].step", "Did you mean 'fetch'?")


def test_an_output_that_does_not_exist_is_refused():
    """RECIPE-7."""
    with pytest.raises(InvalidRecordError, match="unknown output of 'first'"):
        made(STEPS_ONLY.replace('left = "first"', 'left = "first.model"'))


def test_a_lock_without_the_code_of_a_step_is_refused():
    parsed = recipe()
    partial = replace(lock(parsed), code={"fetch": digest("x")})
    with pytest.raises(StaleLockError, match="not locked"):
        instantiate(parsed, partial, steps=STEPS, platform=PLATFORM)


def test_portable_numerics_have_no_platform():
    """DRV-6, NUM-100."""
    text = FULL.replace('class = "native-1"\nseed = 3\nthreads = 2', "seed = 3")
    nodes = made(text, platform=replace(PLATFORM, isa="riscv")).nodes
    assert nodes == made(text).nodes
    assert all(node.platform is None for node in nodes.values())
    assert nodes["train-1"].numerics == Numerics(cls="portable-1", seed=3)


def test_contents_are_the_trees_of_the_lock():
    for derivation in made(STEPS_ONLY).nodes.values():
        for _, one in derivation.inputs:
            if isinstance(one, ContentInput):
                assert one.content in made(STEPS_ONLY).contents
