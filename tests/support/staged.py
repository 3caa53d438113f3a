"""Recipes of stages (spec/recipe.md), read with a small catalogue of the tests' own."""

from dataclasses import replace
from types import MappingProxyType

import pytest

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
from kolm_build.core.catalogue.table import ALGORITHMS
from kolm_build.core.instantiation.instantiate import instantiate
from kolm_build.core.recipe import parse_recipe
from kolm_build.errors import InvalidRecordError
from kolm_build.steps.table import INHERIT, STEPS, TRAINED, StepSpec
from tests.core.samples import PLATFORM, digest, lock


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


def use_catalogue(monkeypatch):
    """Read stages by `ROWS` alone."""
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
