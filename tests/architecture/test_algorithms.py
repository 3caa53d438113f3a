"""The catalogue, its steps and its examples are one."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import combinations

import pytest

from kolm_build.core.catalogue.algorithm import FAMILIES, FEDERATION
from kolm_build.core.catalogue.common import TRAINING
from kolm_build.core.catalogue.table import ALGORITHMS, OBJECTIVES
from kolm_build.core.recipe import parse_recipe
from kolm_build.steps.table import STEPS
from tests.support.models import ROOT

EXAMPLES = ROOT / "examples" / "algorithms"
STAGES = [row.id for row in ALGORITHMS.values() if row.axis != FEDERATION]


def test_the_readme_says_how_many_algorithms_there_are():
    assert f"{len(ALGORITHMS)} algorithms" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_row_says_all_that_people_ask(name):
    """ALG-1."""
    row = ALGORITHMS[name]
    told = (row.title, row.paper, row.minimises, row.schema, row.backing, row.oracle, row.passes)
    assert all(told), row
    assert row.family in FAMILIES
    assert row.certified


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_has_a_step_and_its_code(name):
    """ALG-1."""
    step = STEPS[OBJECTIVES[name].step]
    assert find_spec(f"kolm_build.steps.{step.module}")


@pytest.mark.parametrize("name", STAGES)
def test_an_example_names_the_algorithm_and_is_a_recipe(name):
    """ALG-1: one recipe each, which the command line would take."""
    text = (EXAMPLES / f"{name}.toml").read_text()
    recipe = parse_recipe(text, file=f"{name}.toml")
    assert recipe.name == name
    assert recipe.pipeline is not None
    used = [
        word
        for stage in recipe.pipeline.train
        for word in (stage.algorithm, *map(str, dict(stage.params).values()))
    ]
    assert name in used


def test_there_is_no_example_of_an_algorithm_that_is_not_there():
    assert {path.stem for path in EXAMPLES.glob("*.toml")} == set(STAGES)


def test_no_parameter_of_a_row_hides_another():
    """RECIPE-15: what a stage says once means one thing."""
    shared = {one.name for one in TRAINING}
    for one, other in combinations(ALGORITHMS.values(), 2):
        names = {parameter.name for parameter in one.parameters}
        if one.axis != other.axis and FEDERATION not in (one.axis, other.axis):
            both = names & {parameter.name for parameter in other.parameters}
            assert not both - shared, (one.id, other.id)
