"""The sections of a recipe's pipeline, as values (spec/recipe.md)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from kolm_build.core.bounded import Params
from kolm_build.core.plain import LATER
from kolm_build.core.provenance import Provenance

ADAPTER = "adapter"
MODEL = "model"
CHECKPOINT = "checkpoint"
MERGE, ATTACH = "merge", "attach"
LOGITS, TEACHER_LOGITS = "logits", "teacher-logits"
"""The input of a stage that learns from a teacher's kept logits, and the step that keeps them."""
LOGITS_PARAMS = ("teacher_top_k", "temperature")
"""The stage's parameters that are those of that step too."""
BASE = "base"
NUMBERED = re.compile(r"train-[0-9]+")
"""How a stage is called by its number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where the base model or the rows come from: a pinned source, a script, or both.

    Attributes:
        source: A pinned source; None where the script makes everything.
        files: Globs that choose among a repository's files.
        script: Path of a Python file beside the recipe, run by the step `script`; None for none.
        args: The script's parameters.
        licence: What the licence is said to be.
    """

    source: str | None
    files: tuple[str, ...]
    script: str | None
    args: Params
    licence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The section ``[base]``.

    Attributes:
        origin: Where the weights come from.
        format: ``gguf`` or ``safetensors``.
        dtype: What the weights become; None keeps what a safetensors model has.
        of: The node of the model that the script is given, ``base`` or ``model-NAME``; empty for
            none.
    """

    origin: Origin
    format: str
    dtype: str | None
    of: str = field(default="", metadata=LATER)


FORMATS = ("jsonl", "csv", "parquet")
"""What rows are written in, and how the name of such a file ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """The section ``[data]``, or one ``[sets.NAME]``.

    Attributes:
        origin: Where the rows come from.
        format: ``jsonl``, ``csv`` or ``parquet``.
        schema: What a row holds, one of `schemas.SCHEMAS`.
        system: System message of every row; empty for none.
        parts: What the schema asks for, sorted by name: templates with columns in braces, and
            names of columns.
        group: Column whose values never cross the split; empty for none.
        provenance: Who answered, where the rows are recorded answers of some teacher.
    """

    origin: Origin
    format: str
    schema: str
    system: str
    parts: tuple[tuple[str, str], ...]
    group: str
    provenance: Provenance | None = field(default=None, metadata=LATER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """The section ``[split]``.

    Attributes:
        seed: Text that decides which rows are held out.
        modulus: One over the held-out share.
        leakage: ``refuse`` or ``drop``: what to do with duplicates across the split.
    """

    seed: str
    modulus: int
    leakage: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Train:
    """One stage: an entry of ``[[train]]``, its references resolved.

    Attributes:
        name: What other stages may call it.
        algorithm: The objective.
        step: The step that runs it.
        rows: The node of its rows; None where it has none.
        models: Sorted (input, node) pairs of the models it is given. The node is ``base``,
            ``model-NAME``, or ``train-K`` for what that stage made. The input ``logits`` is not
            the model itself, but what the step ``teacher-logits`` keeps of it.
        adapters: Sorted (input, node) pairs of the stages whose adapters it is given.
        code: Sorted (input, path) pairs of the Python files it is given.
        data: Sorted (input, path) pairs of the other files and folders it is given.
        output: What it makes: ``adapter``, which a node ``merge-K`` puts into the weights, or
            ``model``.
        mergeable: Whether an adapter of it can be put into the weights.
        params: Its parameters, sorted, defaults filled in; decimal numbers in plain form.
        checkpoints: The optimiser steps after which its training is put aside, ascending.
    """

    name: str
    algorithm: str
    step: str
    rows: str | None
    models: tuple[tuple[str, str], ...]
    code: tuple[tuple[str, str], ...]
    data: tuple[tuple[str, str], ...]
    output: str
    mergeable: bool
    params: Params
    checkpoints: tuple[int, ...] = ()
    adapters: tuple[tuple[str, str], ...] = field(default=(), metadata=LATER)

    @property
    def is_merged(self) -> bool:
        """Whether a node ``merge-K`` puts what it made into the weights."""
        return self.output == ADAPTER and self.mergeable

    @property
    def taught(self) -> tuple[str, str | None, Params] | None:
        """Whose kept logits it learns from: the teacher's node, the rows', the parameters."""
        teacher = dict(self.models).get(LOGITS)
        if teacher is None:
            return None
        return teacher, self.rows, tuple(one for one in self.params if one[0] in LOGITS_PARAMS)

    @property
    def gives_model(self) -> bool:
        """Whether a plain model comes of it, by itself or by that node."""
        return self.output == MODEL or self.mergeable


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantise:
    """The section ``[quantise]``.

    Attributes:
        scheme: What the weights become, one of `quantisation.SCHEMES`.
        method: ``rtn``, ``gptq``, ``awq`` or ``smoothquant``.
        rows: The node of the rows that it is calibrated on; None where nothing is calibrated.
        params: All its parameters, sorted, defaults filled in; decimal numbers in plain form.
    """

    scheme: str
    method: str
    rows: str | None
    params: Params


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluate:
    """The section ``[evaluate]``.

    Attributes:
        max_new_tokens: The longest answer.
        batch_size: Rows at once.
        labels: The label set; empty for free answers.
        verifier: ``none``, ``labels``, ``regex:…`` or ``json-schema:…``.
        metric: ``exact`` or ``label``.
    """

    max_new_tokens: int
    batch_size: int
    labels: tuple[str, ...]
    verifier: str
    metric: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """The device profile ``[score.device]`` that latency and cost are modelled on."""

    name: str
    flops_per_s: int
    bytes_per_s: int
    microusd_per_hour: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The section ``[score]``: budgets, and the device they are for."""

    size_budget_bytes: int
    latency_budget_us: int
    cost_budget_microusd: int
    device: Device


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """The section ``[gate]``: the least values, as plain decimal text."""

    k_min: str
    accuracy_min: str
    coverage_min: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """The sections that make up the pipeline from base model to artifact.

    Attributes:
        sets: The sections ``[sets.NAME]``, as sorted (name, section) pairs.
        models: The sections ``[models.NAME]``, as sorted (name, section) pairs.
        quantise: The section ``[quantise]``; None where the model ships as it was trained.
    """

    base: Base
    data: Data
    sets: tuple[tuple[str, Data], ...]
    models: tuple[tuple[str, Base], ...]
    split: Split
    train: tuple[Train, ...]
    quantise: Quantise | None
    evaluate: Evaluate
    score: Score
    gate: Gate

    def joined_by(self, number: int) -> str:
        """The step that puts the adapter of the stage `number` to its model; empty for none.

        One that cannot be merged is attached where it is the last stage's, whose model is used.
        """
        stage = self.train[number - 1]
        if stage.is_merged:
            return MERGE
        is_last = number == len(self.train)
        return ATTACH if is_last and not stage.gives_model else ""

    def stage(self, node: str) -> Train:
        """The stage of the node ``train-K``."""
        return self.train[int(node.removeprefix("train-")) - 1]

    def logits_of(self, number: int) -> str:
        """The node of the logits that the stage `number` learns from; empty for none.

        Stages that learn from the same ones share a node, called after the first of them.
        """
        taught = self.train[number - 1].taught
        if taught is None:
            return ""
        same = (at for at, stage in enumerate(self.train, 1) if stage.taught == taught)
        return f"{LOGITS}-{next(same)}"

    @property
    def attached(self) -> Train | None:
        """The last stage, where its adapter is put beside the weights; else None."""
        number = len(self.train)
        return self.train[-1] if number and self.joined_by(number) == ATTACH else None

    @property
    def nodes(self) -> tuple[str, ...]:
        """The names of the pipeline's nodes (spec/recipe.md), reserved for it."""
        sets = [node.format(name) for name, _ in self.sets for node in _OF_A_SET]
        models = [node.format(name) for name, _ in self.models for node in _OF_A_MODEL]
        stages = [node for at in range(1, len(self.train) + 1) for node in self._stage(at)]
        after = _AFTER if self.quantise is None else (*_QUANTISED, *_AFTER)
        return (*_BEFORE, *sets, *models, *stages, *after)

    @property
    def reserved(self) -> tuple[str, ...]:
        """The names that no generic step may have beside it: those of its nodes and inputs."""
        sets = [name.format(of) for of, _ in self.sets for name in _INPUTS_OF_A_SET]
        models = [name.format(of) for of, _ in self.models for name in _INPUTS_OF_A_MODEL]
        return (*self.nodes, *_INPUTS, *sets, *models)

    def _stage(self, number: int) -> tuple[str, ...]:
        """The nodes of the stage `number`."""
        stage, joined = self.train[number - 1], self.joined_by(number)
        own = f"{LOGITS}-{number}"
        first = (own,) if self.logits_of(number) == own else ()
        aside = tuple(segment(number, step) for step in stage.checkpoints)
        return (*first, *aside, f"train-{number}", *([f"{joined}-{number}"] if joined else []))


def segment(number: int, step: int) -> str:
    """The node of the part of the stage `number` that ends after the optimiser step `step`."""
    return f"train-{number}-after-{step}"


_BEFORE = ("base-source", "base", "data-source", "rows", "dataset", "base-evaluation")
_QUANTISED = ("full-evaluation", "full-score", "quantise")
_AFTER = ("evaluation", "score", "gate", "package")
_INPUTS = ("base", "base-script", "data", "data-script")
_OF_A_SET = ("data-{}-source", "rows-{}", "dataset-{}")
_OF_A_MODEL = ("model-{}-source", "model-{}")
_INPUTS_OF_A_SET = ("data-{}", "data-{}-script")
_INPUTS_OF_A_MODEL = ("model-{}", "model-{}-script")
