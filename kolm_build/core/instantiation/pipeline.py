"""The nodes of a recipe's pipeline, in their order, and the steps that it uses."""

from __future__ import annotations

from kolm_build.core.derivation import Input
from kolm_build.core.generic_step import NodeOutput
from kolm_build.core.instantiation.draft import Draft
from kolm_build.core.instantiation.instance import FULL_EVALUATION, FULL_SCORE, QUANTISE
from kolm_build.core.instantiation.judgement import add_evaluation, add_gate, add_score
from kolm_build.core.instantiation.origins import add_base, importer_of
from kolm_build.core.instantiation.rows import add_data, add_set
from kolm_build.core.instantiation.stages import add_stages
from kolm_build.core.sections import TEACHER_LOGITS, Pipeline, Quantise
from kolm_build.core.source import is_local


def pipeline_steps(pipeline: Pipeline) -> set[str]:
    """The steps that `pipeline` uses."""
    bases = [pipeline.base, *dict(pipeline.models).values()]
    rows = [pipeline.data, *dict(pipeline.sets).values()]
    used = {"dataset", "evaluate", "score", "gate", "package"}
    used |= {importer_of(base) for base in bases}
    used |= {stage.step for stage in pipeline.train}
    used |= {TEACHER_LOGITS for stage in pipeline.train if stage.taught is not None}
    used |= {pipeline.joined_by(number) for number in range(1, len(pipeline.train) + 1)} - {""}
    if pipeline.quantise is not None:
        used.add("quantise")
    for origin in (*(base.origin for base in bases), *(data.origin for data in rows)):
        if origin.script is not None:
            used.add("script")
        if origin.source is not None and not is_local(origin.source):
            used.add("fetch")
    return used


def add_pipeline(draft: Draft, pipeline: Pipeline) -> None:
    """The nodes of the pipeline, all but the package."""
    base = add_base(draft, "base", pipeline.base)
    holdout = draft.node(add_data(draft, pipeline))
    for name, rows in pipeline.sets:
        add_set(draft, pipeline.split, name, rows)
    for name, section in sorted(pipeline.models, key=lambda model: bool(model[1].of)):
        add_base(draft, f"model-{name}", section)
    add_evaluation(draft, pipeline, "base-evaluation", base, holdout)
    model = add_stages(draft, pipeline, base)
    if pipeline.quantise is not None:
        add_evaluation(draft, pipeline, FULL_EVALUATION, model, holdout)
        add_score(draft, pipeline, FULL_SCORE, model, evaluation=FULL_EVALUATION)
        model = _add_quantise(draft, pipeline.quantise, model)
    add_evaluation(draft, pipeline, "evaluation", model, holdout)
    scored = add_score(draft, pipeline, "score", model, evaluation="evaluation")
    add_gate(draft, pipeline, scored)


def _add_quantise(draft: Draft, quantise: Quantise, model: NodeOutput) -> NodeOutput:
    """The model quantised: from here on, what is judged and shipped."""
    inputs: dict[str, Input] = {"model": draft.node(model)}
    if quantise.rows is not None:
        rows = NodeOutput(node=quantise.rows, output="train")
        inputs["calibration"] = draft.node(rows)
    return draft.add(QUANTISE, "quantise", inputs=inputs, params=dict(quantise.params))
