"""The nodes that judge a model: evaluation, score and gate."""

from __future__ import annotations

from kolm_build.core.derivation import Input, Param
from kolm_build.core.generic_step import NodeOutput
from kolm_build.core.instantiation.draft import Draft
from kolm_build.core.sections import Pipeline


def add_evaluation(
    draft: Draft, pipeline: Pipeline, name: str, model: NodeOutput, holdout: Input
) -> None:
    """What `model` does with the rows held out, as the node `name`."""
    evaluate = pipeline.evaluate
    params: dict[str, Param] = {
        "max_new_tokens": evaluate.max_new_tokens,
        "batch_size": evaluate.batch_size,
        "labels": "\n".join(evaluate.labels),
        "verifier": evaluate.verifier,
        "metric": evaluate.metric,
    }
    inputs: dict[str, Input] = {"model": draft.node(model), "holdout": holdout}
    draft.add(name, "evaluate", inputs=inputs, params=params)


def add_score(
    draft: Draft, pipeline: Pipeline, name: str, model: NodeOutput, *, evaluation: str
) -> NodeOutput:
    """The K-score of `model` after `evaluation`, as the node `name`."""
    score, device = pipeline.score, pipeline.score.device
    base = draft.node(NodeOutput(node="base-evaluation"))
    params: dict[str, Param] = {
        "size_budget_bytes": score.size_budget_bytes,
        "latency_budget_us": score.latency_budget_us,
        "cost_budget_microusd": score.cost_budget_microusd,
        "device_name": device.name,
        "device_flops_per_s": device.flops_per_s,
        "device_bytes_per_s": device.bytes_per_s,
        "device_microusd_per_hour": device.microusd_per_hour,
    }
    inputs: dict[str, Input] = {
        "evaluation": draft.node(NodeOutput(node=evaluation)),
        "base": base,
        "model": draft.node(model),
    }
    return draft.add(name, "score", inputs=inputs, params=params)


def add_gate(draft: Draft, pipeline: Pipeline, scored: NodeOutput) -> None:
    """The verdict on what was `scored`."""
    gate = pipeline.gate
    params: dict[str, Param] = {
        "k_min": gate.k_min,
        "accuracy_min": gate.accuracy_min,
        "coverage_min": gate.coverage_min,
    }
    inputs: dict[str, Input] = {
        "score": draft.node(scored),
        "evaluation": draft.node(NodeOutput(node="evaluation")),
    }
    draft.add("gate", "gate", inputs=inputs, params=params)
