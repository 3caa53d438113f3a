"""The committed locks belong to the committed examples and steps."""

from pathlib import Path

import pytest

from kolm_build.core.instantiation.instantiate import instantiate
from kolm_build.core.lock import check, parse_lock, render_lock
from kolm_build.core.outputs import parse_outputs
from kolm_build.core.recipe import parse_recipe
from kolm_build.steps.table import STEPS
from kolm_build.surfaces.code import code_of
from kolm_build.surfaces.trees import digest_of
from tests.core.samples import PLATFORM, lock

ROOT = Path(__file__).resolve().parent.parent.parent
LOCKS = sorted((ROOT / "lockfiles").glob("*.lock"))


def read(path: Path):
    return parse_lock(path.read_text("utf-8"), file=path.name)


def test_every_example_has_a_lock():
    examples = {path.parent.name for path in (ROOT / "examples").glob("*/kolm.toml")}
    assert {path.stem for path in LOCKS} == examples


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_a_lock_is_as_kolm_writes_it(path):
    assert render_lock(read(path)) == path.read_text("utf-8")


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_a_lock_matches_its_recipe(path):
    recipe = ROOT / "examples" / path.stem / "kolm.toml"
    check(parse_recipe(recipe.read_text("utf-8"), file="kolm.toml"), read(path), file=path.name)


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_a_lock_names_the_code_of_the_steps_as_they_are(path):
    """Where this fails, a step changed: `make lockfiles`."""
    assert read(path).code == {step: digest_of(code_of(step)) for step in read(path).code}


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_the_recorded_outputs_are_of_the_derivations_of_the_lock(path):
    """RECIPE-13, RECIPE-34: all but the package, whose story only a store can keep."""
    recipe = parse_recipe((ROOT / "examples" / path.stem / "kolm.toml").read_text("utf-8"))
    made = instantiate(recipe, read(path), steps=STEPS, platform=PLATFORM)
    recorded = parse_outputs(path.with_suffix(".outputs").read_text("utf-8"), file=path.stem)
    found = {one.target: one.derivation for one in recorded.entries if one.target != "package"}
    assert found
    assert found == {name: made.digests[name] for name in found}


@pytest.mark.parametrize("name", ["icd-triage", "tiny"])
def test_an_example_in_four_bits_is_the_plain_one_up_to_its_training(name):
    """RECIPE-34: so a store that holds the one trains nothing for the other."""
    plain, quantised = (
        parse_recipe((ROOT / "examples" / one / "kolm.toml").read_text("utf-8"))
        for one in (name, f"{name}-int4")
    )
    made = instantiate(plain, lock(plain), steps=STEPS, platform=PLATFORM)
    again = instantiate(quantised, lock(quantised), steps=STEPS, platform=PLATFORM)
    same = {one for one in made.nodes if made.digests[one] == again.digests[one]}
    assert made.nodes.keys() - same == {"evaluation", "score", "gate"}
    assert again.nodes["full-evaluation"].inputs == made.nodes["evaluation"].inputs
    files = {path.name for path in (ROOT / "examples" / name).glob("*.py")}
    for file in files:
        both = [ROOT / "examples" / one / file for one in (name, f"{name}-int4")]
        assert both[0].read_bytes() == both[1].read_bytes()
