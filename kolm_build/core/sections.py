"""The sections of a recipe's pipeline, as values (spec/recipe.md)."""

from __future__ import annotations

from dataclasses import dataclass

from kolm_build.core.bounded import Params


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
    """

    origin: Origin
    format: str
    dtype: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """The section ``[data]``.

    Attributes:
        origin: Where the rows come from.
        format: ``jsonl``, ``csv`` or ``parquet``.
        system: System message of every row; empty for none.
        prompt: Template of the user message, columns in braces.
        answer: Template of the answer.
        group: Column whose values never cross the split; empty for none.
    """

    origin: Origin
    format: str
    system: str
    prompt: str
    answer: str
    group: str


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
    """One entry of ``[[train]]``.

    Attributes:
        algorithm: The training step, ``sft``.
        params: Its parameters, sorted, defaults filled in; decimal numbers in plain form.
    """

    algorithm: str
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
    """The sections that make up the pipeline from base model to artifact."""

    base: Base
    data: Data
    split: Split
    train: tuple[Train, ...]
    evaluate: Evaluate
    score: Score
    gate: Gate

    @property
    def nodes(self) -> tuple[str, ...]:
        """The names of the pipeline's nodes (spec/recipe.md), reserved for it."""
        trained = [f"{kind}-{at + 1}" for at in range(len(self.train)) for kind in _TRAINED]
        return (*_BEFORE, *trained, *_AFTER)

    @property
    def reserved(self) -> tuple[str, ...]:
        """The names that no generic step may have beside it: those of its nodes and inputs."""
        return (*self.nodes, *_INPUTS)


_BEFORE = ("base-source", "base", "data-source", "rows", "dataset", "base-evaluation")
_TRAINED = ("train", "merge")
_AFTER = ("evaluation", "score", "gate", "package")
_INPUTS = ("base", "base-script", "data", "data-script")
