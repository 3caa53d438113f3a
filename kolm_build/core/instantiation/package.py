"""The node of the artifact, and the story that goes into it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from kolm_build.core.closure import closure
from kolm_build.core.derivation import ContentInput, Derivation, Input
from kolm_build.core.digest import Digest
from kolm_build.core.generic_step import NodeOutput
from kolm_build.core.instantiation.draft import Draft
from kolm_build.core.instantiation.instance import FULL_EVALUATION, FULL_SCORE, PACKAGE, QUANTISE
from kolm_build.core.recipe import Recipe

Story = Callable[[Mapping[str, Derivation]], Digest]
"""Keeps the account of a build, given every node above the package, and gives its content."""


def add_package(draft: Draft, recipe: Recipe, story: Story) -> None:
    """The package of the pipeline's model, all its evidence beside it; `draft` has the rest."""
    score = dict(draft.nodes["score"].inputs)
    packaged = dict(_PACKAGED)
    if recipe.pipeline is not None and recipe.pipeline.quantise is not None:
        packaged |= _PACKAGED_QUANTISED
    nodes = [reference.node for reference in packaged.values()]
    above = closure(["gate", *nodes], partial(_needs_of, draft))
    content = story({name: draft.nodes[name] for name in above})
    inputs: dict[str, Input] = {role: draft.node(reference) for role, reference in packaged.items()}
    inputs |= {
        "model": score["model"],
        "holdout": draft.node(NodeOutput(node="dataset", output="holdout")),
        "story": ContentInput(content=content),
    }
    draft.add(PACKAGE, "package", inputs=inputs, params={"name": recipe.name})


_PACKAGED: Mapping[str, NodeOutput] = {
    "evaluation": NodeOutput(node="evaluation"),
    "base": NodeOutput(node="base-evaluation"),
    "score": NodeOutput(node="score"),
    "gate": NodeOutput(node="gate"),
}
_PACKAGED_QUANTISED: Mapping[str, NodeOutput] = {
    "full": NodeOutput(node=FULL_EVALUATION),
    "full-score": NodeOutput(node=FULL_SCORE),
    "quantisation": NodeOutput(node=QUANTISE, output="report"),
}


def _needs_of(draft: Draft, name: str) -> list[str]:
    """The nodes that the node `name` takes inputs from."""
    names = {digest: node for node, digest in draft.digests.items()}
    return [names[need.derivation] for need in draft.nodes[name].needs]
