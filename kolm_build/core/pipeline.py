"""Instantiation: recipe and lock become derivations (spec/recipe.md, section "Nodes").

Pure: what a step is comes in as a table, the machine as a value, the story of the build as a
function, since it is an object that only a store can keep. Each node's digest is computed once,
here, and travels with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from posixpath import basename
from typing import Protocol

from kolm_build.core import lock_version_1
from kolm_build.core.bounded import unknown_name
from kolm_build.core.closure import closure
from kolm_build.core.derivation import (
    ContentInput,
    Derivation,
    Input,
    OutputInput,
    Param,
)
from kolm_build.core.digest import Digest
from kolm_build.core.generic_step import LocalPath, NodeOutput, Reference, Step, parse_reference
from kolm_build.core.lock import Lock
from kolm_build.core.numerics import Numerics, Platform
from kolm_build.core.provenance import CALL_LOG
from kolm_build.core.recipe import Recipe
from kolm_build.core.sections import (
    ADAPTER,
    CHECKPOINT,
    LOGITS,
    TEACHER_LOGITS,
    Base,
    Data,
    Origin,
    Pipeline,
    Quantise,
    Split,
    Train,
    segment,
)
from kolm_build.core.source import is_local
from kolm_build.errors import InvalidRecordError, StaleLockError, UsageError

EXACT = Numerics(cls="exact-1")
PACKAGE = "package"
QUANTISE = "quantise"
FULL_EVALUATION, FULL_SCORE = "full-evaluation", "full-score"

Story = Callable[[Mapping[str, Derivation]], Digest]
"""Keeps the account of a build, given every node above the package, and gives its content."""


class StepShape(Protocol):
    """What instantiation must know of a step."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of its outputs."""

    @property
    def network(self) -> bool:
        """Whether it reaches the network; then its output must be locked."""

    @property
    def environment(self) -> bool:
        """Whether it sees the installed distributions."""

    @property
    def numerics(self) -> str:
        """``exact-1``, or ``inherit`` for the recipe's class."""


Steps = Mapping[str, StepShape]


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """The derivations of one recipe and lock.

    Attributes:
        nodes: Node name to derivation, each after all that it needs.
        digests: Node name to the digest of its derivation.
        contents: Trees that must be in the store before anything is built, and where each is
            found.
        targets: What is built unless something else is asked for.
    """

    nodes: Mapping[str, Derivation] = field(hash=False)
    digests: Mapping[str, Digest] = field(hash=False)
    contents: Mapping[Digest, str] = field(hash=False)
    targets: Mapping[str, OutputInput] = field(hash=False)

    @property
    def derivations(self) -> Mapping[Digest, Derivation]:
        """Every derivation by its digest, each after all that it needs."""
        return {self.digests[name]: derivation for name, derivation in self.nodes.items()}

    def find(self, text: str) -> OutputInput:
        """The output that ``node`` or ``node.output`` names.

        Raises:
            UsageError: There is none; the nearest one is suggested.
        """
        try:
            reference = parse_reference(text)
            if isinstance(reference, NodeOutput):
                return _output(self.nodes, self.digests, reference)
        except InvalidRecordError as error:
            raise UsageError(
                error.reason, expected=error.expected, actual=error.actual, advice=error.advice
            ) from None
        raise UsageError("a path is not a node", actual=repr(text)[:80])


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
        used |= _pipeline_steps(recipe.pipeline)
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
    build = _Build(recipe=recipe, lock=lock, steps=steps, platform=platform)
    if recipe.pipeline is not None:
        _add_pipeline(build, recipe.pipeline)
    for step in _in_order(recipe.steps):
        _add_step(build, step)
    if recipe.pipeline is not None and story is not None:
        _add_package(build, recipe, story)
    return Instance(
        nodes=build.nodes,
        digests=build.digests,
        contents=build.contents,
        targets=_targets(build),
    )


class _Build:
    """An instance in the making."""

    __slots__ = (
        "code",
        "contents",
        "digests",
        "environment",
        "lock",
        "locked",
        "nodes",
        "numerics",
        "platform",
        "steps",
    )

    def __init__(self, *, recipe: Recipe, lock: Lock, steps: Steps, platform: Platform) -> None:
        self.lock = lock
        self.locked = {one.name: one for one in lock.inputs}
        self.code = lock.code
        self.environment = lock.environment.digest
        self.numerics = recipe.numerics
        self.platform = platform if recipe.numerics.cls == "native-1" else None
        self.steps = steps
        self.nodes: dict[str, Derivation] = {}
        self.digests: dict[str, Digest] = {}
        self.contents: dict[Digest, str] = {}

    def add(
        self,
        name: str,
        step: str,
        *,
        inputs: Mapping[str, Input],
        params: Mapping[str, Param],
        outputs: Sequence[str] = (),
        expect: Digest | None = None,
    ) -> NodeOutput:
        """Add the node `name`; a reference to its output ``out``."""
        shape, code = self.shape(name, step)
        inherits = shape.numerics == "inherit"
        derivation = Derivation(
            name=name,
            step=step,
            code=code,
            environment=self.environment if shape.environment else None,
            params=tuple(sorted(params.items())),
            inputs=tuple(sorted(inputs.items())),
            outputs=tuple((output, expect) for output in sorted(outputs or shape.outputs)),
            numerics=self.numerics if inherits else EXACT,
            platform=self.platform if inherits else None,
        )
        self.nodes[name] = derivation
        self.digests[name] = derivation.digest
        return NodeOutput(node=name)

    def add_present(
        self,
        name: str,
        step: str,
        *,
        inputs: Mapping[str, Input],
        params: Mapping[str, Param],
        outputs: Sequence[str] = (),
    ) -> None:
        """Add the node `name` of a step that was another when the lock's version was the first."""
        if self.lock.version == 1:
            params = lock_version_1.params(step, params)
            outputs = lock_version_1.OUTPUTS.get(step, outputs)
        self.add(name, step, inputs=inputs, params=params, outputs=outputs)

    def shape(self, name: str, step: str) -> tuple[StepShape, Digest]:
        """The shape and the locked code of `step`."""
        if step not in self.steps:
            raise unknown_name("step", step, self.steps, where=f"{name}.step")
        if step not in self.code:
            raise StaleLockError(
                "a step whose code is not locked", where=f"code {step}", advice="Run `kolm lock`."
            )
        return self.steps[step], self.code[step]

    def node(self, reference: NodeOutput) -> OutputInput:
        """The input that an output of an earlier node is."""
        return _output(self.nodes, self.digests, reference)

    def local(self, name: str) -> ContentInput:
        """The input that the locked path `name` is."""
        locked = self.lock.input(name) if name not in self.locked else self.locked[name]
        self.contents[locked.tree] = locked.source
        return ContentInput(content=locked.tree)


def _output(
    nodes: Mapping[str, Derivation], digests: Mapping[str, Digest], reference: NodeOutput
) -> OutputInput:
    if reference.node not in nodes:
        raise unknown_name("node", reference.node, nodes)
    outputs = {name for name, _ in nodes[reference.node].outputs}
    if reference.output not in outputs:
        raise unknown_name(f"output of {reference.node!r}", reference.output, outputs)
    return OutputInput(derivation=digests[reference.node], output=reference.output)


def _pipeline_steps(pipeline: Pipeline) -> set[str]:
    bases = [pipeline.base, *dict(pipeline.models).values()]
    rows = [pipeline.data, *dict(pipeline.sets).values()]
    used = {"dataset", "evaluate", "score", "gate", "package"}
    used |= {_importer(base) for base in bases}
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


def _importer(base: Base) -> str:
    return "import-gguf" if base.format == "gguf" else "import-model"


def _add_pipeline(build: _Build, pipeline: Pipeline) -> None:
    """The nodes of the pipeline, all but the package."""
    base = _add_base(build, "base", pipeline.base)
    holdout = build.node(_add_data(build, pipeline))
    for name, rows in pipeline.sets:
        _add_set(build, pipeline.split, name, rows)
    for name, section in sorted(pipeline.models, key=lambda model: bool(model[1].of)):
        _add_base(build, f"model-{name}", section)
    _add_evaluation(build, pipeline, "base-evaluation", base, holdout)
    model = _add_stages(build, pipeline, base)
    if pipeline.quantise is not None:
        _add_evaluation(build, pipeline, FULL_EVALUATION, model, holdout)
        _add_score(build, pipeline, FULL_SCORE, model, evaluation=FULL_EVALUATION)
        model = _add_quantise(build, pipeline.quantise, model)
    _add_evaluation(build, pipeline, "evaluation", model, holdout)
    scored = _add_score(build, pipeline, "score", model, evaluation="evaluation")
    _add_gate(build, pipeline, scored)


def _add_base(build: _Build, name: str, base: Base) -> NodeOutput:
    of = build.node(NodeOutput(node=base.of)) if base.of else None
    source = _add_origin(build, name, base.origin, script=f"{name}-source", given=of)
    params: dict[str, Param] = {} if base.dtype is None else {"dtype": base.dtype}
    return build.add(name, _importer(base), inputs={"source": source}, params=params)


def _add_origin(
    build: _Build, name: str, origin: Origin, *, script: str, given: Input | None = None
) -> Input:
    """What an origin gives: a local path, what is fetched, or what a script makes.

    The script makes it of either, of the model `given`, or of nothing.
    """
    if origin.source is not None:
        given = _add_source(build, name, origin.source, origin.files)
    if origin.script is None:
        assert given is not None, "an origin has a source or a script"
        return given
    inputs: dict[str, Input] = {} if given is None else {"source": given}
    inputs["script"] = build.local(f"{name}-script")
    params = dict(origin.args) | {"entry": basename(origin.script)}
    return build.node(build.add(script, "script", inputs=inputs, params=params))


def _add_source(build: _Build, name: str, source: str, files: Sequence[str]) -> Input:
    if is_local(source):
        return build.local(name)
    params: dict[str, Param] = {"source": source}
    if files:
        params["files"] = "\n".join(files)
    expect = build.lock.input(name).tree
    node = build.add(f"{name}-source", "fetch", inputs={}, params=params, expect=expect)
    return build.node(node)


def _add_data(build: _Build, pipeline: Pipeline) -> NodeOutput:
    """The rows that the model is measured on, and trained on where a stage has no others."""
    rows = _add_origin(build, "data", pipeline.data.origin, script="rows")
    params = _data_params(pipeline.data, pipeline.split)
    build.add_present("dataset", "dataset", inputs={"rows": rows}, params=params)
    return NodeOutput(node="dataset", output="holdout")


def _add_set(build: _Build, split: Split, name: str, data: Data) -> None:
    """Further rows: none of them may be like a row that the model is measured on."""
    rows = _add_origin(build, f"data-{name}", data.origin, script=f"rows-{name}")
    against = build.node(NodeOutput(node="dataset", output="compared"))
    inputs = {"rows": rows, "against": against}
    if data.provenance is not None:
        inputs[CALL_LOG] = build.local(f"data-{name}.{CALL_LOG}")
    build.add(f"dataset-{name}", "dataset", inputs=inputs, params=_data_params(data, split))


def _data_params(data: Data, split: Split) -> dict[str, Param]:
    return {
        **dict(data.parts),
        **({} if data.provenance is None else data.provenance.teacher.params),
        "format": data.format,
        "schema": data.schema,
        "system": data.system,
        "group": data.group,
        "split_seed": split.seed,
        "modulus": split.modulus,
        "leakage": split.leakage,
    }


def _add_stages(build: _Build, pipeline: Pipeline, base: NodeOutput) -> NodeOutput:
    """Each stage, and its model with what it changed; the model of the last one."""
    models = {"base": base}
    models |= {f"model-{name}": NodeOutput(node=f"model-{name}") for name, _ in pipeline.models}
    model = base
    for number, stage in enumerate(pipeline.train, start=1):
        start = build.node(models[dict(stage.models)["model"]])
        inputs: dict[str, Input] = {
            role: build.node(models[node]) for role, node in stage.models if role != LOGITS
        }
        inputs |= _add_logits(build, pipeline.logits_of(number), stage, models)
        made = _add_stage(build, number, stage, inputs)
        joined = pipeline.joined_by(number)
        if joined:
            parts: dict[str, Input] = {"model": start, "adapter": build.node(made)}
            made = build.add(f"{joined}-{number}", joined, inputs=parts, params={})
        models[f"train-{number}"] = model = made
    return model


def _add_logits(
    build: _Build, name: str, stage: Train, models: Mapping[str, NodeOutput]
) -> Mapping[str, Input]:
    """What a teacher's logits over the stage's rows are to it, kept once for all its students."""
    if stage.taught is None:
        return {}
    teacher, rows, params = stage.taught
    if name not in build.nodes:
        inputs = {"model": build.node(models[teacher]), "train": _train_rows(build, rows)}
        build.add(name, TEACHER_LOGITS, inputs=inputs, params=dict(params))
    return {LOGITS: build.node(NodeOutput(node=name))}


def _train_rows(build: _Build, node: str | None) -> OutputInput:
    assert node is not None, "what learns from a teacher's logits has rows"
    return build.node(NodeOutput(node=node, output="train"))


def _add_stage(build: _Build, number: int, stage: Train, given: Mapping[str, Input]) -> NodeOutput:
    """The node of a stage, `given` the models that it names; its adapter, or its model."""
    name = f"train-{number}"
    inputs: dict[str, Input] = dict(given)
    inputs |= {
        role: build.node(NodeOutput(node=node, output=ADAPTER)) for role, node in stage.adapters
    }
    inputs |= {role: build.local(f"{name}.{role}") for role, _ in (*stage.code, *stage.data)}
    if stage.rows is not None:
        inputs["train"] = _train_rows(build, stage.rows)
    shape, _ = build.shape(name, stage.step)
    outputs = [stage.output if one == ADAPTER else one for one in shape.outputs]
    params = dict(stage.params)
    inputs |= _add_segments(build, number, stage, inputs)
    build.add_present(name, stage.step, inputs=inputs, params=params, outputs=outputs)
    return NodeOutput(node=name, output=stage.output)


def _add_segments(
    build: _Build, number: int, stage: Train, inputs: Mapping[str, Input]
) -> Mapping[str, Input]:
    """The parts of a stage that end before its last step; the input that goes on from them."""
    before: dict[str, Input] = {}
    for step in stage.checkpoints:
        aside = build.add(
            segment(number, step),
            stage.step,
            inputs={**inputs, **before},
            params=dict(stage.params) | {"stop_after": step},
            outputs=(CHECKPOINT,),
        )
        before = {CHECKPOINT: build.node(replace(aside, output=CHECKPOINT))}
    return before


def _add_evaluation(
    build: _Build, pipeline: Pipeline, name: str, model: NodeOutput, holdout: Input
) -> None:
    evaluate = pipeline.evaluate
    params: dict[str, Param] = {
        "max_new_tokens": evaluate.max_new_tokens,
        "batch_size": evaluate.batch_size,
        "labels": "\n".join(evaluate.labels),
        "verifier": evaluate.verifier,
        "metric": evaluate.metric,
    }
    inputs: dict[str, Input] = {"model": build.node(model), "holdout": holdout}
    build.add(name, "evaluate", inputs=inputs, params=params)


def _add_quantise(build: _Build, quantise: Quantise, model: NodeOutput) -> NodeOutput:
    """The model quantised: from here on, what is judged and shipped."""
    inputs: dict[str, Input] = {"model": build.node(model)}
    if quantise.rows is not None:
        rows = NodeOutput(node=quantise.rows, output="train")
        inputs["calibration"] = build.node(rows)
    return build.add(QUANTISE, "quantise", inputs=inputs, params=dict(quantise.params))


def _add_score(
    build: _Build, pipeline: Pipeline, name: str, model: NodeOutput, *, evaluation: str
) -> NodeOutput:
    score, device = pipeline.score, pipeline.score.device
    base = build.node(NodeOutput(node="base-evaluation"))
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
        "evaluation": build.node(NodeOutput(node=evaluation)),
        "base": base,
        "model": build.node(model),
    }
    return build.add(name, "score", inputs=inputs, params=params)


def _add_gate(build: _Build, pipeline: Pipeline, scored: NodeOutput) -> None:
    gate = pipeline.gate
    params: dict[str, Param] = {
        "k_min": gate.k_min,
        "accuracy_min": gate.accuracy_min,
        "coverage_min": gate.coverage_min,
    }
    inputs: dict[str, Input] = {
        "score": build.node(scored),
        "evaluation": build.node(NodeOutput(node="evaluation")),
    }
    build.add("gate", "gate", inputs=inputs, params=params)


def _add_package(build: _Build, recipe: Recipe, story: Story) -> None:
    score = dict(build.nodes["score"].inputs)
    packaged = dict(_PACKAGED)
    if recipe.pipeline is not None and recipe.pipeline.quantise is not None:
        packaged |= _PACKAGED_QUANTISED
    nodes = [reference.node for reference in packaged.values()]
    above = closure(["gate", *nodes], partial(_needs_of, build))
    content = story({name: build.nodes[name] for name in above})
    inputs: dict[str, Input] = {role: build.node(reference) for role, reference in packaged.items()}
    inputs |= {
        "model": score["model"],
        "holdout": build.node(NodeOutput(node="dataset", output="holdout")),
        "story": ContentInput(content=content),
    }
    build.add(PACKAGE, "package", inputs=inputs, params={"name": recipe.name})


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


def _needs_of(build: _Build, name: str) -> list[str]:
    """The nodes that the node `name` takes inputs from."""
    names = {digest: node for node, digest in build.digests.items()}
    return [names[need.derivation] for need in build.nodes[name].needs]


def _add_step(build: _Build, step: Step) -> None:
    try:
        inputs = {
            role: _step_input(build, f"{step.name}.{role}", reference)
            for role, reference in step.inputs
        }
    except InvalidRecordError as error:
        raise error.under(f"step {step.name}") from None
    shape, _ = build.shape(step.name, step.step)
    if shape.network and step.step != "fetch":
        raise InvalidRecordError(
            "a step with a network needs a locked output", where=f"step {step.name}"
        )
    expect = build.lock.input(step.name).tree if step.step == "fetch" else None
    build.add(
        step.name,
        step.step,
        inputs=inputs,
        params=dict(step.params),
        outputs=step.outputs,
        expect=expect,
    )


def _step_input(build: _Build, name: str, reference: Reference) -> Input:
    if isinstance(reference, LocalPath):
        return build.local(name)
    return build.node(reference)


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


def _targets(build: _Build) -> dict[str, OutputInput]:
    """Every output of every node that no other node needs."""
    needed = {need.derivation for node in build.nodes.values() for need in node.needs}
    return {
        str(NodeOutput(node=name, output=output)): OutputInput(
            derivation=build.digests[name], output=output
        )
        for name, derivation in build.nodes.items()
        if build.digests[name] not in needed
        for output, _ in derivation.outputs
    }
