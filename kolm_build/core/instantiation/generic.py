"""The nodes of generic steps."""

from __future__ import annotations

from collections.abc import Sequence

from kolm_build.core.closure import closure
from kolm_build.core.derivation import Input
from kolm_build.core.generic_step import LocalPath, NodeOutput, Reference, Step
from kolm_build.core.instantiation.draft import Draft
from kolm_build.errors import InvalidRecordError


def add_steps(draft: Draft, steps: Sequence[Step]) -> None:
    """The node of each step, after those that it needs.

    Raises:
        InvalidRecordError: A step, output or parameter does not exist or does not fit.
    """
    for step in _in_order(steps):
        _add_step(draft, step)


def _add_step(draft: Draft, step: Step) -> None:
    try:
        inputs = {
            role: _step_input(draft, f"{step.name}.{role}", reference)
            for role, reference in step.inputs
        }
    except InvalidRecordError as error:
        raise error.under(f"step {step.name}") from None
    shape, _ = draft.shape(step.name, step.step)
    if shape.network and step.step != "fetch":
        raise InvalidRecordError(
            "a step with a network needs a locked output", where=f"step {step.name}"
        )
    expect = draft.lock.input(step.name).tree if step.step == "fetch" else None
    draft.add(
        step.name,
        step.step,
        inputs=inputs,
        params=dict(step.params),
        outputs=step.outputs,
        expect=expect,
    )


def _step_input(draft: Draft, name: str, reference: Reference) -> Input:
    if isinstance(reference, LocalPath):
        return draft.local(name)
    return draft.node(reference)


def _in_order(steps: Sequence[Step]) -> list[Step]:
    """The generic steps, each after those that it needs."""
    by_name = {step.name: step for step in steps}

    def needs(name: str) -> list[str]:
        return [
            reference.node
            for _, reference in by_name[name].inputs
            if isinstance(reference, NodeOutput) and reference.node in by_name
        ]

    return [by_name[name] for name in closure(by_name, needs)]
