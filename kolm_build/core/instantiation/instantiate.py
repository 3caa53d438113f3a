"""A recipe and its lock, instantiated."""

from __future__ import annotations

from kolm_build.core.bounded import unknown_name
from kolm_build.core.derivation import OutputInput
from kolm_build.core.generic_step import NodeOutput
from kolm_build.core.instantiation.draft import Draft, Steps
from kolm_build.core.instantiation.generic import add_steps
from kolm_build.core.instantiation.instance import Instance
from kolm_build.core.instantiation.package import Story, add_package
from kolm_build.core.instantiation.pipeline import add_pipeline, pipeline_steps
from kolm_build.core.lock import Lock
from kolm_build.core.numerics import Platform
from kolm_build.core.recipe import Recipe


def step_names(recipe: Recipe, steps: Steps) -> tuple[str, ...]:
    """The names of the steps that `recipe` uses, sorted: those whose code a lock pins.

    Raises:
        InvalidRecordError: The recipe names a step that the table does not have.
    """
    used = {step.step for step in recipe.steps}
    for index, step in enumerate(recipe.steps):
        if step.step not in steps:
            raise unknown_name("step", step.step, steps, where=f"step[{index}].step")
    if recipe.pipeline is not None:
        used |= pipeline_steps(recipe.pipeline)
    return tuple(sorted(used))


def instantiate(
    recipe: Recipe, lock: Lock, *, steps: Steps, platform: Platform, story: Story | None = None
) -> Instance:
    """The derivations that `recipe` and `lock` describe.

    Args:
        recipe: What to make.
        lock: Its lock; `lock.check` has compared the two.
        steps: The table of steps.
        platform: The machine that `native-1` steps are pinned to.
        story: Keeps the account that goes into the artifact; without it there is no package.

    Raises:
        InvalidRecordError: A step, output or parameter does not exist or does not fit.
        StaleLockError: The lock lacks an input or a step.
    """
    draft = Draft(recipe=recipe, lock=lock, steps=steps, platform=platform)
    if recipe.pipeline is not None:
        add_pipeline(draft, recipe.pipeline)
    add_steps(draft, recipe.steps)
    if recipe.pipeline is not None and story is not None:
        add_package(draft, recipe, story)
    return Instance(
        nodes=draft.nodes,
        digests=draft.digests,
        contents=draft.contents,
        targets=_targets(draft),
    )


def _targets(draft: Draft) -> dict[str, OutputInput]:
    """Every output of every node that no other node needs."""
    needed = {need.derivation for node in draft.nodes.values() for need in node.needs}
    return {
        str(NodeOutput(node=name, output=output)): OutputInput(
            derivation=draft.digests[name], output=output
        )
        for name, derivation in draft.nodes.items()
        if draft.digests[name] not in needed
        for output, _ in derivation.outputs
    }
