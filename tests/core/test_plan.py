"""spec/plan.md: what is reused, substituted and built, and why."""

import sys
from dataclasses import replace

import pytest

from kolm_build.core.derivation import ContentInput, Derivation, OutputInput
from kolm_build.core.numerics import Numerics
from kolm_build.core.plan import Build, Reuse, Substitute, plan
from kolm_build.errors import NotReproducibleError
from tests.core.samples import digest


def node(name, *needs, outputs=("out",), expect=None, code="code"):
    return Derivation(
        name=name,
        step="script",
        code=digest(code),
        environment=None,
        params=(("node", name),),
        inputs=(
            ("script", ContentInput(content=digest("script"))),
            *((f"z{index:02}", need) for index, need in enumerate(needs)),
        ),
        outputs=tuple((output, expect) for output in sorted(outputs)),
        numerics=Numerics(cls="exact-1"),
    )


def out(derivation, output="out"):
    return OutputInput(derivation=derivation.digest, output=output)


class World:
    """Claims and trees, and a count of the questions asked."""

    def __init__(self, *derivations):
        self.derivations = {one.digest: one for one in derivations}
        self.claims = {}
        self.here = set()
        self.offered = set()
        self.asked = []

    def built(self, derivation, content=None, *, here=True):
        """Claim every output of `derivation`, whose inputs have been built in this world."""
        known = {}
        for need in derivation.needs:
            above = self.derivations[need.derivation]
            fixed = dict(above.outputs)[need.output]
            known[need] = fixed or self.claims[self.resolved(above), need.output][0]
        for output, _ in derivation.outputs:
            tree = digest(content or f"{derivation.name}.{output}")
            self.claims.setdefault((self.resolved(derivation), output), []).append(tree)
            if here:
                self.here.add(tree)

    def resolved(self, derivation):
        known = {}
        for need in derivation.needs:
            above = self.derivations[need.derivation]
            fixed = dict(above.outputs)[need.output]
            known[need] = fixed or self.claims[self.resolved(above), need.output][0]
        return derivation.resolve(known).resolved_digest

    def lookup(self, keys):
        self.asked.append(len(keys))
        return {key: tuple(sorted(set(self.claims[key]))) for key in keys if key in self.claims}

    def plan(self, *wanted, **options):
        return plan(
            wanted,
            derivations=self.derivations,
            lookup=self.lookup,
            present=lambda trees: self.here & set(trees),
            substitutable=lambda trees: self.offered & set(trees),
            **options,
        )

    def actions(self, *wanted, **options):
        """(node, action, reason) of each."""
        return [
            (action.name, type(action), action.reason)
            for action in self.plan(*wanted, **options).actions
        ]


FIRST = node("first")
SECOND = node("second", out(FIRST))
OTHER = node("other", out(FIRST))
LAST = node("last", out(SECOND), out(OTHER))
ALL = (FIRST, SECOND, OTHER, LAST)


def world(*built):
    made = World(*ALL)
    for one in built:
        made.built(one)
    return made


def test_with_nothing_claimed_everything_is_built_needs_first():
    """PLAN-1, PLAN-6."""
    assert world().actions(out(LAST)) == [
        ("first", Build, "never built"),
        ("second", Build, "an input is not known yet"),
        ("other", Build, "an input is not known yet"),
        ("last", Build, "an input is not known yet"),
    ]


def test_what_was_built_is_reused():
    """PLAN-4."""
    found = world(*ALL).plan(out(LAST))
    assert not found.builds
    assert found.contents[out(LAST)] == digest("last.out")
    assert [action.reason for action in found.actions] == ["not needed"] * 3 + ["here"]


def test_what_is_below_a_change_is_built_and_only_what_it_needs_must_be_here():
    """PLAN-4, PLAN-5."""
    made = world(FIRST, SECOND, OTHER)
    assert made.actions(out(LAST)) == [
        ("first", Reuse, "not needed"),
        ("second", Reuse, "here"),
        ("other", Reuse, "here"),
        ("last", Build, "never built"),
    ]


def test_bytes_that_are_gone_and_not_needed_stay_gone():
    """PLAN-5."""
    made = world(*ALL)
    made.here = {digest("last.out")}
    assert not made.plan(out(LAST)).builds


def test_bytes_that_are_gone_and_needed_are_built_again():
    """PLAN-4."""
    made = world(FIRST, SECOND, OTHER)
    made.here -= {digest("second.out"), digest("first.out")}
    assert made.actions(out(LAST)) == [
        ("first", Build, "its bytes are gone"),
        ("second", Build, "its bytes are gone"),
        ("other", Reuse, "here"),
        ("last", Build, "never built"),
    ]
    built = {action.name: action for action in made.plan(out(LAST)).builds}
    assert built["second"].contents == (("out", digest("second.out")),)


def test_bytes_that_a_substituter_has_are_copied():
    """PLAN-4."""
    made = world(*ALL)
    made.here.clear()
    made.offered = {digest("last.out")}
    (last,) = [one for one in made.plan(out(LAST)).actions if one.name == "last"]
    assert isinstance(last, Substitute)
    assert (last.missing, last.reason) == (("out",), "wanted")
    assert not made.plan(out(LAST)).builds


def test_a_fixed_output_is_known_without_a_claim():
    """PLAN-3."""
    source = node("source", expect=digest("source"))
    model = node("model", out(source))
    made = World(source, model)
    assert made.actions(out(model)) == [
        ("source", Build, "not here yet"),
        ("model", Build, "never built"),
    ]
    made.built(model)
    assert made.actions(out(model)) == [
        ("source", Reuse, "not needed"),
        ("model", Reuse, "here"),
    ]


def test_a_rebuilt_input_of_equal_content_builds_nothing_below():
    """PLAN-6: early cutoff, once the new script's output is known."""
    made = world(*ALL)
    edited = node("first", code="reformatted")
    second = node("second", out(edited))
    other = node("other", out(edited))
    last = node("last", out(second), out(other))
    made.derivations = {one.digest: one for one in (edited, second, other, last)}
    assert [action.name for action in made.plan(out(last)).builds] == [
        *("first", "second", "other", "last")
    ]
    made.built(edited, "first.out")
    assert not made.plan(out(last)).builds


def test_only_the_needed_output_must_be_here():
    """PLAN-5."""
    many = node("many", outputs=("a", "b"))
    made = World(many)
    made.built(many)
    made.here = {digest("many.a")}
    assert made.actions(out(many, "a")) == [("many", Reuse, "here")]
    assert made.actions(out(many, "b")) == [("many", Build, "its bytes are gone")]


def test_two_contents_of_something_needed_stop_the_plan():
    """PLAN-7, DRV-11."""
    made = world(*ALL)
    made.built(SECOND, "another")
    with pytest.raises(NotReproducibleError) as caught:
        made.plan(out(LAST))
    assert caught.value.where == "second.out"
    assert str(digest("another")) in caught.value.actual
    assert str(digest("second.out")) in caught.value.actual


def test_two_contents_of_something_not_needed_do_not():
    """PLAN-7."""
    made = world(*ALL)
    made.built(LAST, "another")
    assert not made.plan(out(SECOND)).builds


def test_a_contested_derivation_may_be_built_again():
    """PLAN-7."""
    made = world(*ALL)
    made.built(SECOND, "another")
    assert made.actions(out(SECOND), again={SECOND.digest}) == [
        ("first", Reuse, "here"),
        ("second", Build, "to be checked"),
    ]


def test_what_is_to_be_checked_is_built_though_it_is_known():
    made = world(*ALL)
    found = made.plan(out(LAST), again={one.digest for one in ALL})
    assert [(action.name, action.reason) for action in found.builds] == [
        (one.name, "to be checked") for one in ALL
    ]
    assert all(action.contents for action in found.builds)


def test_a_plan_does_not_depend_on_the_order_of_derivations():
    """PLAN-2."""
    made = world(FIRST, OTHER)
    one = made.plan(out(LAST))
    made.derivations = dict(reversed(made.derivations.items()))
    assert made.plan(out(LAST)) == one


def test_each_derivation_has_one_action_though_it_is_wanted_twice():
    """PLAN-1."""
    found = world().plan(out(SECOND), out(OTHER), out(SECOND))
    assert [action.name for action in found.actions] == ["first", "second", "other"]


def test_look_ups_go_level_by_level():
    """PLAN-8."""
    made = world(*ALL)
    made.plan(out(LAST))
    assert made.asked == [1, 2, 1]


def test_a_long_chain_is_planned():
    """PLAN-8."""
    chain = [node("n0")]
    for index in range(1, 2 * sys.getrecursionlimit()):
        chain.append(node(f"n{index}", out(chain[-1])))
    found = World(*chain).plan(out(chain[-1]))
    assert [action.name for action in found.actions] == [one.name for one in chain]


def test_the_plan_is_a_value_for_machines():
    value = world(FIRST).plan(out(SECOND)).to_value()
    assert [one["action"] for one in value] == ["reuse", "build"]
    assert value[0]["contents"] == {"out": str(digest("first.out"))}
    assert value[1]["reason"] == "never built"


def test_resolved_digests_travel_with_the_plan():
    made = world(*ALL)
    found = made.plan(out(LAST))
    assert found.resolved == {one.digest: made.resolved(one) for one in ALL}


def test_a_resolved_digest_is_that_of_the_resolved_derivation():
    """DRV-8."""
    content = {out(SECOND): digest("a"), out(OTHER): digest("b")}
    renamed = replace(LAST, name="other-name").resolve(content)
    assert LAST.resolve(content).resolved_digest == LAST.resolved_digest_with(content)
    assert renamed.resolved_digest == LAST.resolved_digest_with(content)
    assert renamed.digest != LAST.resolve(content).digest


def test_nothing_wanted_is_nothing_to_do():
    assert world().plan().actions == ()
