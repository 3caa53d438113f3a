"""Properties of decisions: split, score, plan, closure, recipes."""

import tomllib
from dataclasses import fields, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from kolm_build.core import merkle
from kolm_build.core.closure import closure, find_cycle
from kolm_build.core.derivation import OutputInput
from kolm_build.core.gc import plan_gc
from kolm_build.core.kscore import Evidence, KScore, score
from kolm_build.core.plan import Build, Reuse, plan
from kolm_build.core.recipe import parse_recipe
from kolm_build.core.split import is_holdout
from kolm_build.errors import KolmError
from tests.core.samples import FULL, digest
from tests.core.test_plan import World, node, out
from tests.golden import independent
from tests.property import strategies

counts = st.integers(0, 1 << 50)
budgets = st.integers(1, 1 << 50)


@st.composite
def evidences(draw):
    rows = draw(st.integers(1, 100_000))
    part = st.integers(0, rows)
    return Evidence(
        rows=rows,
        correct=draw(part),
        verified=draw(part),
        base_correct=draw(st.none() | part),
        weight_bytes=draw(counts),
        flops_per_request=draw(counts),
        bytes_per_request=draw(counts),
        size_budget_bytes=draw(budgets),
        latency_budget_us=draw(budgets),
        cost_budget_microusd=draw(budgets),
        device_flops_per_s=draw(budgets),
        device_bytes_per_s=draw(budgets),
        device_microusd_per_hour=draw(counts),
    )


class TestScore:
    """KS-2, KS-9, KS-11."""

    @given(evidences())
    def test_every_term_lies_in_0_to_1_with_four_places(self, evidence):
        made = score(evidence)
        for figure in (made.k, made.accuracy, made.size, made.latency, made.cost, made.coverage):
            assert 0 <= figure <= 1
            assert figure.as_tuple().exponent == -4
        assert KScore.from_value(made.to_value()) == made

    @given(evidences())
    def test_the_second_implementation_agrees(self, evidence):
        assert independent.kscore(evidence.to_value()) == score(evidence).to_value()

    @given(evidences(), st.sampled_from(["correct", "verified"]))
    def test_one_more_right_row_never_lowers_k(self, evidence, name):
        count = getattr(evidence, name)
        more = replace(evidence, **{name: min(count + 1, evidence.rows)})
        assert score(more).k >= score(evidence).k

    @given(
        evidences(),
        st.sampled_from(["weight_bytes", "flops_per_request", "bytes_per_request"]),
        st.integers(0, 1 << 50),
    )
    def test_more_use_never_raises_k(self, evidence, name, more):
        larger = replace(evidence, **{name: getattr(evidence, name) + more})
        assert score(larger).k <= score(evidence).k

    @given(evidences())
    def test_evidence_is_read_back(self, evidence):
        assert Evidence.from_value(evidence.to_value()) == evidence
        assert len(fields(evidence)) == len(evidence.to_value())


class TestSplit:
    """SPLIT-1, SPLIT-3, SPLIT-4: a side is a function of the key, the seed and the modulus."""

    @given(strategies.texts, st.text(st.characters(codec="utf-8")), st.integers(2, 1000))
    def test_the_second_implementation_agrees(self, key, seed, modulus):
        assert is_holdout(key, seed, modulus) is independent.is_holdout(key, seed, modulus)

    @given(st.lists(st.binary(max_size=20), max_size=70))
    def test_roots_agree(self, leaves):
        """SPLIT-6, SPLIT-7."""
        assert merkle.root(leaves) == independent.merkle_root(leaves)


graphs = st.integers(1, 12).flatmap(
    lambda count: st.tuples(
        *(st.sets(st.integers(0, index - 1)) if index else st.just(set()) for index in range(count))
    )
)


class TestGraphs:
    """PLAN-1, PLAN-2, PLAN-5, PLAN-9."""

    @given(graphs)
    def test_a_closure_is_everything_reachable_needs_first(self, graph):
        last = len(graph) - 1
        order = closure([last], lambda one: sorted(graph[one]))
        assert len(set(order)) == len(order)
        for at, one in enumerate(order):
            assert graph[one] <= set(order[:at])
        assert find_cycle(range(len(graph)), graph.__getitem__) == ()
        sizes = {digest(str(one)): 1 for one in range(len(graph))}
        live = plan_gc(
            [digest(str(last))],
            references=lambda one: [
                digest(str(need))
                for index, needs in enumerate(graph)
                if digest(str(index)) == one
                for need in needs
            ],
            sizes=sizes,
        ).live
        assert live == {digest(str(one)) for one in order}

    @settings(max_examples=60)
    @given(graphs, st.data())
    def test_a_plan_builds_what_is_missing_and_nothing_more(self, graph, data):
        nodes = []
        for index, needs in enumerate(graph):
            nodes.append(node(f"n{index}", *(out(nodes[need]) for need in sorted(needs))))
        world = World(*nodes)
        claimed = data.draw(st.integers(0, len(nodes)))
        for one in nodes[:claimed]:
            world.built(one, here=data.draw(st.booleans()))
        made = world.plan(out(nodes[-1]))
        names = [action.name for action in made.actions]
        reachable = closure([len(graph) - 1], lambda one: sorted(graph[one]))
        assert sorted(names) == sorted(f"n{one}" for one in reachable)
        done = {}
        for action in made.actions:
            needs = {need.derivation for need in world.derivations[action.derivation].needs}
            assert needs <= done.keys()
            done[action.derivation] = action
            if isinstance(action, Build):
                for need in needs:
                    above = done[need]
                    here = {tree for _, tree in above.contents} & world.here
                    assert isinstance(above, Build) or here
            else:
                assert isinstance(action, Reuse)
        wanted = made.contents.get(OutputInput(derivation=nodes[-1].digest, output="out"))
        if wanted in world.here:
            assert not made.builds


def refusing_file(text):
    """The file that the refusal of a recipe names; None where it is read."""
    try:
        parse_recipe(text, file="kolm.toml")
    except KolmError as error:
        return error.file
    return None


class TestRecipes:
    """RECIPE-1: whatever the text, a recipe or an error of ours."""

    @settings(max_examples=200)
    @given(st.data())
    def test_a_damaged_recipe_is_read_or_refused(self, data):
        lines = FULL.splitlines()
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, len(lines) - 1))
            lines[at] = data.draw(
                st.sampled_from(["", "x = 1", "[[step]]", "[base]", lines[at] + "0", "a = 0.5"])
                | st.text(max_size=12)
            )
        assert refusing_file("\n".join(lines)) in {None, "kolm.toml"}

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text("ab", max_size=3) | st.just(0.5),
            lambda below: st.lists(below, max_size=2) | st.dictionaries(strategies.labels, below),
            max_leaves=5,
        ),
        st.sampled_from(sorted(tomllib.loads(FULL))),
    )
    def test_a_section_of_any_shape_is_read_or_refused(self, value, section):
        from kolm_build.core import recipe

        raw = tomllib.loads(FULL) | {section: value}
        try:
            recipe._check_plain(raw, "")
            recipe._recipe(raw, "portable-1")
        except KolmError:
            return


def test_the_plan_of_nothing_is_nothing():
    assert plan([], derivations={}, lookup=lambda _: {}, present=lambda _: set()).actions == ()
