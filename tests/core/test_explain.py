"""Causes are told apart from consequences."""

from dataclasses import replace

from kolm_build.core.derivation import ContentInput, Derivation, OutputInput
from kolm_build.core.digest import Digest
from kolm_build.core.explain import explain
from kolm_build.core.numerics import Numerics


def digest(text: str) -> Digest:
    return Digest.of_blob(text.encode())


def node(name: str, *needs: Derivation, script: str = "script") -> Derivation:
    inputs = [
        (f"in-{need.name}", OutputInput(derivation=need.digest, output="out")) for need in needs
    ]
    return Derivation(
        name=name,
        step="script",
        code=digest("code"),
        environment=None,
        params=(),
        inputs=tuple(sorted([*inputs, ("script", ContentInput(content=digest(script)))])),
        outputs=(("out", None),),
        numerics=Numerics(cls="exact-1"),
    )


def chain(*, middle: str = "script") -> dict[str, Derivation]:
    first = node("first")
    second = node("second", first, script=middle)
    third = node("third", second)
    other = node("other", first)
    return {"first": first, "second": second, "third": third, "other": other}


def test_equal_builds_have_no_causes():
    explanation = explain(chain(), chain())
    assert explanation.causes == ()
    assert explanation.follows == {}
    assert explanation.removed == ()


def test_only_the_changed_node_is_a_cause_and_what_needs_it_follows():
    explanation = explain(chain(), chain(middle="edited"))
    assert [cause.node for cause in explanation.causes] == ["second"]
    assert [change.part for change in explanation.causes[0].changes] == ["inputs.script"]
    assert explanation.follows == {"third": ("second",)}


def test_a_change_names_before_and_after():
    (cause,) = explain(chain(), chain(middle="edited")).causes
    assert str(cause.changes[0]) == f"inputs.script: {digest('script')} -> {digest('edited')}"


def test_a_new_node_and_a_removed_one_are_said():
    before, after = chain(), chain()
    before["gone"] = node("gone")
    after["fresh"] = node("fresh", after["third"])
    explanation = explain(before, after)
    assert [(cause.node, cause.is_new) for cause in explanation.causes] == [("fresh", True)]
    assert explanation.removed == ("gone",)


def test_rewiring_a_node_to_another_output_is_a_cause():
    before = chain()
    rewired = replace(before["other"], inputs=(*node("x", before["second"]).inputs,))
    explanation = explain(before, before | {"other": rewired})
    parts = [change.part for change in explanation.causes[0].changes]
    assert sorted(parts) == ["inputs.in-first", "inputs.in-second"]
