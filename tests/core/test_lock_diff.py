"""What a lock's change can reach."""

from dataclasses import replace

from kolm_build.core.digest import Sha256
from kolm_build.core.instantiation.instantiate import instantiate
from kolm_build.core.lock_diff import effects, lock_changes
from kolm_build.steps.table import STEPS
from tests.core.samples import FULL, PLATFORM, TINY, digest, environment, lock, recipe


def nodes(made, locked):
    return instantiate(
        made, locked, steps=STEPS, platform=PLATFORM, story=lambda _: digest("story")
    ).nodes


def reached(before, after):
    """The nodes whose bytes may change."""
    found = effects(nodes(*before), nodes(*after))
    return {node for node, effect in found.items() if effect != "cannot change"}


MADE = recipe()
LOCKED = lock(MADE)
BELOW_DATA = {
    *("rows", "dataset", "base-evaluation", "train-1", "merge-1"),
    *("evaluation", "score", "gate", "package"),
}


def test_equal_locks_have_no_changes_and_reach_nothing():
    assert lock_changes(LOCKED, lock(recipe())) == ()
    assert reached((MADE, LOCKED), (MADE, lock(MADE))) == set()


def test_an_edited_script_is_one_data_change_and_leaves_the_base_alone():
    """LOCK-9."""
    after = lock(MADE, trees={"data-script": digest("edited")})
    changes = lock_changes(LOCKED, after)
    assert [(change.kind, change.name) for change in changes] == [("code", "data-script")]
    assert str(digest("edited")) in changes[0].after
    assert reached((MADE, LOCKED), (MADE, after)) == BELOW_DATA


def test_new_weights_reach_what_uses_the_model_and_not_the_rows():
    """LOCK-9."""
    after = lock(MADE, trees={"base": digest("other weights")})
    found = reached((MADE, LOCKED), (MADE, after))
    assert found == (BELOW_DATA - {"rows", "dataset"}) | {"base-source", "base"}


def test_another_environment_cannot_change_what_a_digest_fixes():
    """LOCK-9."""
    after = lock(MADE, torch="2.14.0", blake3="1.0.11")
    changes = lock_changes(LOCKED, after)
    assert [(change.kind, change.name) for change in changes] == [("environment", "torch")]
    found = effects(nodes(MADE, LOCKED), nodes(MADE, after))
    assert found["base-source"] == found["data-source"] == found["rows"] == "cannot change"
    assert found["base"] == found["train-1"] == "may change"


def test_a_parameter_of_the_training_reaches_no_further_up():
    """LOCK-9."""
    made = recipe(FULL.replace('"1e-3"', '"2e-3"'))
    found = reached((MADE, LOCKED), (made, lock(made)))
    assert found == {"train-1", "merge-1", "evaluation", "score", "gate", "package"}
    changes = lock_changes(LOCKED, lock(made))
    assert [(change.kind, change.name) for change in changes] == [("recipe", "[train]")]


def test_a_new_and_a_lost_node_are_said():
    made = recipe(FULL + '\n[[step]]\nname = "x"\nstep = "script"\n')
    assert effects(nodes(MADE, LOCKED), nodes(made, lock(made)))["x"] == "new"
    assert effects(nodes(made, lock(made)), nodes(MADE, LOCKED))["x"] == "gone"


def test_a_name_reaches_no_bytes():
    before = nodes(MADE, LOCKED)
    renamed = before | {"package": replace(before["package"], name="other")}
    assert effects(before, renamed)["package"] == "cannot change"


def test_every_part_of_a_lock_is_compared():
    other = replace(
        LOCKED,
        numerics=replace(LOCKED.numerics, seed=9),
        environment=replace(environment(), python="3.11.8"),
        code=LOCKED.code | {"sft": digest("newer")},
        inputs=tuple(replace(one, licence="MIT") for one in LOCKED.inputs),
    )
    kinds = {change.kind for change in lock_changes(LOCKED, other)}
    assert kinds == {"numerics", "environment", "code", "weights", "data"}
    for change in lock_changes(LOCKED, other):
        assert change.to_value()["kind"] == change.kind
        assert "->" in str(change)


def test_a_change_of_the_kernels_is_told_by_their_digest():
    """LOCK-11."""
    one, other = Sha256.of_blob(b"1"), Sha256.of_blob(b"2")
    made = lock(recipe(TINY))
    (change,) = lock_changes(replace(made, kernels=one), replace(made, kernels=other))
    assert (change.kind, change.name) == ("numerics", "kernels")
    assert (change.before, change.after) == (str(one), str(other))
