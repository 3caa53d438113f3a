"""Recipes: what a person writes, read strictly (spec/recipe.md).

A recipe is one TOML file, `kolm.toml`. The sections of the pipeline (base, data, train, evaluate,
score, gate) and the generic `[[step]]` nodes may stand together or alone. Nothing here looks at a
disk: `parse_recipe` reads text, and names what `kolm lock` has to pin as `Recipe.sources`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, is_dataclass
from dataclasses import fields as fields_of
from functools import partial
from unicodedata import is_normalized

from kolm_build.core import cbor, strict_json
from kolm_build.core.bounded import Params, choice, integer, params, texts, unknown_name
from kolm_build.core.closure import find_cycle
from kolm_build.core.decimals import render_decimal
from kolm_build.core.digest import Digest, RecordKind
from kolm_build.core.environment import parse_distribution_name
from kolm_build.core.fields import Fields
from kolm_build.core.kscore import Thresholds
from kolm_build.core.name import parse_label
from kolm_build.core.numerics import Numerics
from kolm_build.core.source import PATH, Source, is_local, parse_path, parse_source
from kolm_build.core.toml import read_toml
from kolm_build.core.training import ALGORITHMS, sft_params
from kolm_build.errors import InvalidRecordError, KolmError

VERSION = 1
FILE = "kolm.toml"
MAX_INTEGER = strict_json.MAX_INTEGER

DISTRIBUTIONS = (
    "accelerate",
    "blake3",
    "datasets",
    "gguf",
    "huggingface-hub",
    "numpy",
    "peft",
    "pip",
    "pyarrow",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
    "trl",
)
"""What a recipe's environment holds, with all they need, unless it names others."""

DTYPES = ("bf16", "fp16", "fp32")


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


_BEFORE = ("base-source", "base", "data-source", "rows", "dataset", "base-evaluation")
_TRAINED = ("train", "merge")
_AFTER = ("evaluation", "score", "gate", "package")
_RESERVED = ("data", "base-script", "data-script")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeOutput:
    """A reference to an output of a node: ``node`` or ``node.output``."""

    node: str
    output: str = "out"

    def __str__(self) -> str:
        return self.node if self.output == "out" else f"{self.node}.{self.output}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalPath:
    """A reference to a file or folder beside the recipe: ``path:./x``."""

    path: str

    def __str__(self) -> str:
        return PATH + self.path


Reference = NodeOutput | LocalPath


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One entry of ``[[step]]``.

    Attributes:
        name: The node's name.
        step: The step's name in the table of steps.
        inputs: Sorted (role, reference) pairs.
        params: Sorted (name, text or integer) pairs.
        outputs: The outputs' names; empty for those of the table.
    """

    name: str
    step: str
    inputs: tuple[tuple[str, Reference], ...]
    params: Params
    outputs: tuple[str, ...] = ()

    def to_value(self) -> list[object]:
        """The plain value: in the order of the attributes."""
        inputs = [[role, str(reference)] for role, reference in self.inputs]
        return [self.name, self.step, inputs, self.params, self.outputs]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A recipe.

    Attributes:
        name: The name of what it makes.
        distributions: Root distributions of the environment, sorted.
        numerics: How steps may compute.
        pipeline: The pipeline's sections; None where the recipe has generic steps alone.
        steps: The generic steps, in the order they are written.
        sections: The digest of every section, by its name: what a lock is compared with.
    """

    name: str
    distributions: tuple[str, ...]
    numerics: Numerics
    pipeline: Pipeline | None
    steps: tuple[Step, ...]
    sections: Mapping[str, Digest] = field(hash=False)

    @property
    def sources(self) -> tuple[Source, ...]:
        """Everything that a lock has to pin, in the order of the recipe."""
        found: list[Source] = []
        if self.pipeline is not None:
            found += _origin_sources("base", "weights", self.pipeline.base.origin)
            found += _origin_sources("data", "data", self.pipeline.data.origin)
        for step in self.steps:
            found += _step_sources(step)
        return tuple(found)


def _origin_sources(name: str, kind: str, origin: Origin) -> Iterator[Source]:
    licence = origin.licence
    if origin.source is not None:
        yield Source(name=name, kind=kind, text=origin.source, licence=licence, files=origin.files)
    if origin.script is not None:
        # What a script makes of nothing carries the licence of the script's section.
        owed = "" if origin.source is not None else licence
        yield Source(name=f"{name}-script", kind="code", text=PATH + origin.script, licence=owed)


def _step_sources(step: Step) -> Iterator[Source]:
    params = dict(step.params)
    if step.step == "fetch":
        files = str(params.get("files", "")).split()
        yield Source(name=step.name, kind="data", text=str(params["source"]), files=tuple(files))
    for role, reference in step.inputs:
        if isinstance(reference, LocalPath):
            kind = "code" if reference.path.endswith(".py") else "data"
            yield Source(name=f"{step.name}.{role}", kind=kind, text=str(reference))


def parse_recipe(text: str, *, file: str = FILE) -> Recipe:
    """The recipe that `text` holds.

    Args:
        text: The TOML text.
        file: Its name, for errors.

    Raises:
        InvalidRecordError: Anything is not as spec/recipe.md says; the error names the file and
            the path of the key.
        UnsupportedVersionError: It is of another format version.
    """
    try:
        raw = read_toml(text)
        _check_plain(raw, "")
        return _recipe(raw)
    except KolmError as error:
        raise error.in_file(file) from None


def _check_plain(value: object, where: str) -> None:
    """Refuse what no record can hold: floats, dates, wide integers, text that is not NFC."""
    if isinstance(value, dict):
        for name, item in value.items():
            _check_plain(item, f"{where}.{name}" if where else name)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_plain(item, f"{where}[{index}]")
    elif type(value) is str:
        if not value.isascii() and not is_normalized("NFC", value):
            raise InvalidRecordError("text must be in Unicode form NFC", where=where)
    elif type(value) is int:
        if abs(value) > MAX_INTEGER:
            raise InvalidRecordError("an integer beyond 2^53 - 1", where=where, actual=str(value))
    elif type(value) is float:
        raise InvalidRecordError(
            "a number that is not whole",
            where=where,
            expected="an integer, or the decimal number as text",
            actual=str(value),
            advice=f'Write it as text: "{value}".' if value - value == 0 else "No NaN or infinity.",
        )
    elif type(value) is not bool:
        raise InvalidRecordError("dates and times have no use here", where=where)


def _recipe(raw: dict[str, object]) -> Recipe:
    fields = Fields(raw)
    fields.version(VERSION)
    name = fields.parsed("name", parse_label)
    environment = fields.record("environment", _distributions)
    numerics = fields.record("numerics", _numerics)
    pipeline = _pipeline(fields)
    steps = fields.records("step", _step)
    fields.done()
    if pipeline is None and not steps:
        raise InvalidRecordError(
            "nothing to build", expected="[base] and the other sections, or [[step]]"
        )
    _check_graph(pipeline, steps)
    return Recipe(
        name=name,
        distributions=environment,
        numerics=numerics,
        pipeline=pipeline,
        steps=steps,
        sections=_section_digests(
            {
                "name": name,
                "environment": environment,
                "numerics": numerics,
                "step": [step.to_value() for step in steps],
            }
            | ({name: getattr(pipeline, name) for name in _SECTIONS} if pipeline else {})
        ),
    )


def _section_digests(sections: Mapping[str, object]) -> Mapping[str, Digest]:
    """The digest of each section's value, defaults filled in; empty arrays are left out."""
    return {
        name: Digest.of_record(cbor.encode(_plain(value)), RecordKind.RECIPE)
        for name, value in sorted(sections.items())
        if value not in ((), [])
    }


def _plain(value: object) -> object:
    """A section as a plain value: records as maps, tuples as arrays."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields_of(value)}
    return value


def _node_name(text: str) -> str:
    """`text` as a label without dots: ``node.output`` must have one reading."""
    if "." in text:
        raise InvalidRecordError("a name without dots is needed", actual=repr(text)[:80])
    return parse_label(text)


def _distributions(value: object) -> tuple[str, ...]:
    fields = Fields(value)
    if not fields.has("distributions"):
        fields.done()
        return DISTRIBUTIONS
    names = texts(fields, "distributions", parse_distribution_name)
    fields.done()
    return tuple(sorted(set(names)))


def _numerics(value: object) -> Numerics:
    fields = Fields(value)
    made = Numerics(
        cls=fields.text("class", default="native-1"),
        seed=fields.integer("seed", default=0),
        threads=fields.integer("threads", default=1),
    )
    fields.done()
    return made


_SECTIONS = ("base", "data", "split", "train", "evaluate", "score", "gate")


def _pipeline(fields: Fields) -> Pipeline | None:
    """The pipeline's sections, all or none of them."""
    given = [name for name in _SECTIONS if fields.has(name)]
    if not given:
        for name in _SECTIONS:
            fields.table(name)  # asked for, so that a misspelt section gets a suggestion
        return None
    for name in ("base", "data", "evaluate", "score"):
        if not fields.has(name):
            raise InvalidRecordError(
                "missing section", where=name, expected=f"[{name}], since there is [{given[0]}]"
            )
    return Pipeline(
        base=fields.record("base", _base),
        data=fields.record("data", _data),
        split=fields.record("split", _split),
        train=fields.records("train", _train),
        evaluate=fields.record("evaluate", _evaluate),
        score=fields.record("score", _score),
        gate=fields.record("gate", _gate),
    )


def _origin(fields: Fields) -> Origin:
    source = fields.parsed("from", parse_source) if fields.has("from") else None
    script = fields.parsed("script", _script) if fields.has("script") else None
    if source is None and script is None:
        raise InvalidRecordError(
            "no source", where="from", expected="from = …, or script = … that makes it"
        )
    if script is None and fields.has("args"):
        raise InvalidRecordError("parameters without a script", where="args")
    return Origin(
        source=source,
        files=texts(fields, "files", _glob),
        script=script,
        args=params(fields, "args"),
        licence=fields.text("licence", default=""),
    )


def _script(text: str) -> str:
    text = text.removeprefix(PATH)
    if not text.endswith(".py"):
        raise InvalidRecordError("not a Python file", expected="such as rows.py", actual=text[:80])
    return parse_path(text)


def _glob(text: str) -> str:
    if not text or any(sign.isspace() for sign in text):
        raise InvalidRecordError("not a file pattern", expected="such as *.safetensors")
    return text


def _base(value: object) -> Base:
    fields = Fields(value)
    origin = _origin(fields)
    if origin.source is not None and origin.script is not None:
        raise InvalidRecordError(
            "both from and script", where="script", expected="one of them: a model has one origin"
        )
    form = choice(fields, "format", ("gguf", "safetensors"))
    made = Base(
        origin=origin,
        format=form,
        dtype=_dtype(fields, form),
    )
    fields.done()
    return made


def _dtype(fields: Fields, form: str) -> str | None:
    if form == "safetensors" and not fields.has("dtype"):
        return None
    return choice(fields, "dtype", DTYPES, default="bf16")


def _data(value: object) -> Data:
    fields = Fields(value)
    made = Data(
        origin=_origin(fields),
        format=choice(fields, "format", ("jsonl", "csv", "parquet"), default="jsonl"),
        system=fields.text("system", default=""),
        prompt=fields.parsed("prompt", _template),
        answer=fields.parsed("answer", _template),
        group=fields.text("group", default=""),
    )
    fields.done()
    return made


def _template(text: str) -> str:
    if not re.search(r"\{[^{}]+\}", text):
        raise InvalidRecordError(
            "a template without a column", expected="a column in braces", actual=repr(text)[:80]
        )
    return text


def _split(value: object) -> Split:
    fields = Fields(value)
    made = Split(
        seed=fields.text("seed", default="0"),
        modulus=integer(fields, "modulus", least=2, most=1000, default=5),
        leakage=choice(fields, "leakage", ("refuse", "drop"), default="refuse"),
    )
    fields.done()
    return made


def _train(value: object) -> Train:
    fields = Fields(value)
    made = Train(algorithm=choice(fields, "algorithm", ALGORITHMS), params=sft_params(fields))
    fields.done()
    return made


def _evaluate(value: object) -> Evaluate:
    fields = Fields(value)
    labels = texts(fields, "labels", _label)
    if len(set(labels)) != len(labels):
        raise InvalidRecordError("a label is there twice", where="labels")
    made = Evaluate(
        max_new_tokens=integer(fields, "max_new_tokens", least=1, default=64),
        batch_size=integer(fields, "batch_size", least=1, default=8),
        labels=labels,
        verifier=_verifier(fields.text("verifier", default="labels" if labels else "none")),
        metric=choice(fields, "metric", ("exact", "label"), default="exact"),
    )
    fields.done()
    for key, needs_labels in (("verifier", made.verifier), ("metric", made.metric + "s")):
        if needs_labels == "labels" and not labels:
            raise InvalidRecordError("there are no labels", where=key, expected="labels = […]")
    return made


def _label(text: str) -> str:
    if not text.strip() or text != text.strip() or "\n" in text:
        raise InvalidRecordError("not a label", expected="one line of text", actual=repr(text)[:80])
    return text


def _verifier(text: str) -> str:
    try:
        if text in ("none", "labels"):
            return text
        if text.startswith("regex:"):
            re.compile(text.removeprefix("regex:"))
            return text
        if text.startswith("json-schema:"):
            Fields(strict_json.loads(text.removeprefix("json-schema:").encode()))
            return text
    except (re.error, InvalidRecordError) as error:
        raise InvalidRecordError("a broken verifier", where="verifier", actual=str(error)) from None
    raise InvalidRecordError(
        "unknown verifier",
        where="verifier",
        expected="none, labels, regex:… or json-schema:…",
        actual=repr(text)[:80],
    )


def _score(value: object) -> Score:
    fields = Fields(value)
    made = Score(
        size_budget_bytes=integer(fields, "size_budget_bytes", least=1, most=MAX_INTEGER),
        latency_budget_us=integer(fields, "latency_budget_us", least=1, most=MAX_INTEGER),
        cost_budget_microusd=integer(fields, "cost_budget_microusd", least=1, most=MAX_INTEGER),
        device=fields.record("device", _device),
    )
    fields.done()
    return made


def _device(value: object) -> Device:
    fields = Fields(value)
    made = Device(
        name=fields.text("name"),
        flops_per_s=integer(fields, "flops_per_s", least=1, most=MAX_INTEGER),
        bytes_per_s=integer(fields, "bytes_per_s", least=1, most=MAX_INTEGER),
        microusd_per_hour=integer(fields, "microusd_per_hour", least=0, most=MAX_INTEGER),
    )
    fields.done()
    return made


def _gate(value: object) -> Gate:
    fields = Fields(value)
    thresholds = Thresholds.parse(
        k=fields.text("k_min", default="0.85"),
        accuracy=fields.text("accuracy_min", default="0"),
        coverage=fields.text("coverage_min", default="0"),
    )
    fields.done()
    return Gate(
        k_min=render_decimal(thresholds.k),
        accuracy_min=render_decimal(thresholds.accuracy),
        coverage_min=render_decimal(thresholds.coverage),
    )


def _step(value: object) -> Step:
    fields = Fields(value)
    made = Step(
        name=fields.parsed("name", _node_name),
        step=fields.parsed("step", parse_label),
        inputs=fields.record("inputs", _references),
        params=params(fields, "params"),
        outputs=tuple(sorted(texts(fields, "outputs", parse_label))),
    )
    fields.done()
    if made.step == "fetch":
        _check_fetch(dict(made.params))
    return made


def _references(value: object) -> tuple[tuple[str, Reference], ...]:
    fields = Fields(value)
    pairs = []
    for role in sorted(value):  # type: ignore[call-overload]  # Fields has checked that it is a map
        try:
            parse_label(role)
        except InvalidRecordError as error:
            raise error.under(role) from None
        pairs.append((role, fields.parsed(role, parse_reference)))
    return tuple(pairs)


def parse_reference(text: str) -> Reference:
    """The reference that `text` spells: ``node``, ``node.output`` or ``path:./x``.

    Raises:
        InvalidRecordError: It is none of them.
    """
    if is_local(text):
        return LocalPath(path=parse_path(text.removeprefix(PATH)))
    node, dot, output = text.partition(".")
    try:
        return NodeOutput(node=parse_label(node), output=parse_label(output) if dot else "out")
    except InvalidRecordError:
        raise InvalidRecordError(
            "not a reference", expected="node, node.output or path:./x", actual=repr(text)[:80]
        ) from None


def _check_fetch(params: Mapping[str, str | int]) -> None:
    text = params.get("source")
    if type(text) is not str:
        raise InvalidRecordError("missing value", where="params.source", expected="text")
    try:
        parse_source(text)
    except InvalidRecordError as error:
        raise error.under("params.source") from None
    if is_local(text):
        raise InvalidRecordError(
            "a local path is not fetched", where="params.source", advice="Name it as an input."
        )


def _check_graph(pipeline: Pipeline | None, steps: tuple[Step, ...]) -> None:
    """Refuse steps of one name, references to nothing, and cycles."""
    reserved = {*pipeline.nodes, *_RESERVED} if pipeline is not None else set()
    by_name: dict[str, Step] = {}
    for index, step in enumerate(steps):
        if step.name in reserved or by_name.setdefault(step.name, step) is not step:
            raise InvalidRecordError(
                "two nodes of one name", where=f"step[{index}].name", actual=repr(step.name)
            )
    known = by_name.keys() | (set(pipeline.nodes) if pipeline is not None else set())
    for index, step in enumerate(steps):
        for role, reference in step.inputs:
            if isinstance(reference, NodeOutput) and reference.node not in known:
                where = f"step[{index}].inputs.{role}"
                raise unknown_name("node", reference.node, known, where=where)
    cycle = find_cycle(by_name, partial(_needs, by_name))
    if cycle:
        raise InvalidRecordError(
            "steps that need one another", where="step", actual=" needs ".join((*cycle, cycle[0]))
        )


def _needs(steps: Mapping[str, Step], name: str) -> Iterator[str]:
    """The generic steps that the step `name` takes inputs from."""
    for _, reference in steps[name].inputs:
        if isinstance(reference, NodeOutput) and reference.node in steps:
            yield reference.node
