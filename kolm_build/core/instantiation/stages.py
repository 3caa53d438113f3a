"""The nodes of the stages of training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from kolm_build.core.derivation import Input, OutputInput
from kolm_build.core.generic_step import NodeOutput
from kolm_build.core.instantiation.draft import Draft
from kolm_build.core.sections import (
    ADAPTER,
    CHECKPOINT,
    LOGITS,
    TEACHER_LOGITS,
    Pipeline,
    Train,
    segment,
)


def add_stages(draft: Draft, pipeline: Pipeline, base: NodeOutput) -> NodeOutput:
    """Each stage, and its model with what it changed; the model of the last one."""
    models = {"base": base}
    models |= {f"model-{name}": NodeOutput(node=f"model-{name}") for name, _ in pipeline.models}
    model = base
    for number, stage in enumerate(pipeline.train, start=1):
        start = draft.node(models[dict(stage.models)["model"]])
        inputs: dict[str, Input] = {
            role: draft.node(models[node]) for role, node in stage.models if role != LOGITS
        }
        inputs |= _add_logits(draft, pipeline.logits_of(number), stage, models)
        made = _add_stage(draft, number, stage, inputs)
        joined = pipeline.joined_by(number)
        if joined:
            parts: dict[str, Input] = {"model": start, "adapter": draft.node(made)}
            made = draft.add(f"{joined}-{number}", joined, inputs=parts, params={})
        models[f"train-{number}"] = model = made
    return model


def _add_logits(
    draft: Draft, name: str, stage: Train, models: Mapping[str, NodeOutput]
) -> Mapping[str, Input]:
    """What a teacher's logits over the stage's rows are to it, kept once for all its students."""
    if stage.taught is None:
        return {}
    teacher, rows, params = stage.taught
    if name not in draft.nodes:
        inputs = {"model": draft.node(models[teacher]), "train": _train_rows(draft, rows)}
        draft.add(name, TEACHER_LOGITS, inputs=inputs, params=dict(params))
    return {LOGITS: draft.node(NodeOutput(node=name))}


def _train_rows(draft: Draft, node: str | None) -> OutputInput:
    assert node is not None, "what learns from a teacher's logits has rows"
    return draft.node(NodeOutput(node=node, output="train"))


def _add_stage(draft: Draft, number: int, stage: Train, given: Mapping[str, Input]) -> NodeOutput:
    """The node of a stage, `given` the models that it names; its adapter, or its model."""
    name = f"train-{number}"
    inputs: dict[str, Input] = dict(given)
    inputs |= {
        role: draft.node(NodeOutput(node=node, output=ADAPTER)) for role, node in stage.adapters
    }
    inputs |= {role: draft.local(f"{name}.{role}") for role, _ in (*stage.code, *stage.data)}
    if stage.rows is not None:
        inputs["train"] = _train_rows(draft, stage.rows)
    shape, _ = draft.shape(name, stage.step)
    outputs = [stage.output if one == ADAPTER else one for one in shape.outputs]
    params = dict(stage.params)
    inputs |= _add_segments(draft, number, stage, inputs)
    draft.add_present(name, stage.step, inputs=inputs, params=params, outputs=outputs)
    return NodeOutput(node=name, output=stage.output)


def _add_segments(
    draft: Draft, number: int, stage: Train, inputs: Mapping[str, Input]
) -> Mapping[str, Input]:
    """The parts of a stage that end before its last step; the input that goes on from them."""
    before: dict[str, Input] = {}
    for step in stage.checkpoints:
        aside = draft.add(
            segment(number, step),
            stage.step,
            inputs={**inputs, **before},
            params=dict(stage.params) | {"stop_after": step},
            outputs=(CHECKPOINT,),
        )
        before = {CHECKPOINT: draft.node(replace(aside, output=CHECKPOINT))}
    return before
