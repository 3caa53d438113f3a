"""Recipes: what a person writes, read strictly (spec/recipe.md).

A recipe is one TOML file, `kolm.toml`. The sections of the pipeline (base, data, train, evaluate,
score, gate) and the generic `[[step]]` nodes may stand together or alone. Nothing here looks at a
disk: `parse_recipe` reads text, and names what `kolm lock` has to pin as `Recipe.sources`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from unicodedata import is_normalized

from kolm_build.core import cbor
from kolm_build.core.bounded import texts
from kolm_build.core.digest import Digest, RecordKind
from kolm_build.core.environment import parse_distribution_name
from kolm_build.core.fields import Fields
from kolm_build.core.generic_step import LocalPath, Step, check_graph, read_step
from kolm_build.core.name import parse_label
from kolm_build.core.numerics import PORTABLE, Numerics
from kolm_build.core.plain import plain
from kolm_build.core.provenance import CALL_LOG, Provenance
from kolm_build.core.quorum import parse_grade
from kolm_build.core.section_reader import SECTIONS, read_pipeline
from kolm_build.core.sections import Origin, Pipeline
from kolm_build.core.source import PATH, Source
from kolm_build.core.strict_json import MAX_INTEGER
from kolm_build.core.toml import read_toml
from kolm_build.errors import InvalidRecordError, KolmError

VERSION = 1
FILE = "kolm.toml"

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A recipe.

    Attributes:
        name: The name of what it makes.
        distributions: Root distributions of the environment, sorted.
        numerics: How steps may compute.
        minimum_grade: How well it has to be shown to be reproducible before it is released (a grade
            of spec/trust.md); None where the recipe does not ask.
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
    minimum_grade: str | None = None

    @property
    def sources(self) -> tuple[Source, ...]:
        """Everything that a lock has to pin, in the order of the recipe."""
        found = [] if self.pipeline is None else list(_pipeline_sources(self.pipeline))
        for step in self.steps:
            found += _step_sources(step)
        return tuple(found)


def _pipeline_sources(pipeline: Pipeline) -> Iterator[Source]:
    yield from _origin_sources("base", "weights", "base", pipeline.base.origin)
    yield from _origin_sources("data", "data", "data", pipeline.data.origin)
    for name, rows in pipeline.sets:
        yield from _origin_sources(f"data-{name}", "data", "sets", rows.origin)
        yield from _provenance_sources(f"data-{name}", rows.provenance)
    for name, model in pipeline.models:
        yield from _origin_sources(f"model-{name}", "weights", "models", model.origin)
    for number, stage in enumerate(pipeline.train, 1):
        for kind, files in (("code", stage.code), ("data", stage.data)):
            for role, path in files:
                name = f"train-{number}.{role}"
                yield Source(name=name, kind=kind, section="train", text=PATH + path)


def _origin_sources(name: str, kind: str, section: str, origin: Origin) -> Iterator[Source]:
    licence = origin.licence
    if origin.source is not None:
        yield Source(
            name=name,
            kind=kind,
            section=section,
            text=origin.source,
            licence=licence,
            files=origin.files,
        )
    if origin.script is not None:
        # What a script makes of nothing carries the licence of the script's section.
        owed = "" if origin.source is not None else licence
        yield Source(
            name=f"{name}-script",
            kind="code",
            section=section,
            text=PATH + origin.script,
            licence=owed,
        )


def _provenance_sources(name: str, provenance: Provenance | None) -> Iterator[Source]:
    """The log of the calls; it carries the licence of the answers in it."""
    if provenance is not None:
        yield Source(
            name=f"{name}.{CALL_LOG}",
            kind="data",
            section="sets",
            text=PATH + provenance.call_log,
            licence=provenance.teacher.licence,
        )


def _step_sources(step: Step) -> Iterator[Source]:
    params = dict(step.params)
    if step.step == "fetch":
        yield Source(
            name=step.name,
            kind="data",
            section="step",
            text=str(params["source"]),
            files=tuple(str(params.get("files", "")).split()),
        )
    for role, reference in step.inputs:
        if isinstance(reference, LocalPath):
            kind = "code" if reference.path.endswith(".py") else "data"
            name = f"{step.name}.{role}"
            yield Source(name=name, kind=kind, section="step", text=str(reference))


def parse_recipe(text: str, *, file: str = FILE, numerics_class: str = PORTABLE) -> Recipe:
    """The recipe that `text` holds.

    Args:
        text: The TOML text.
        file: Its name, for errors.
        numerics_class: What a recipe that names no class means: that of its lock, if it has one.

    Raises:
        InvalidRecordError: Anything is not as spec/recipe.md says; the error names the file and
            the path of the key.
        UnsupportedVersionError: It is of another format version.
    """
    try:
        raw = read_toml(text)
        _check_plain(raw, "")
        return _recipe(raw, numerics_class)
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


def _recipe(raw: dict[str, object], numerics_class: str) -> Recipe:
    fields = Fields(raw)
    fields.version(VERSION)
    name = fields.parsed("name", parse_label)
    environment = fields.record("environment", _distributions)
    numerics = fields.record("numerics", partial(_numerics, numerics_class))
    grade = fields.record("release", _minimum_grade) if fields.has("release") else None
    pipeline = read_pipeline(fields)
    steps = fields.records("step", read_step)
    fields.done()
    if pipeline is None and not steps:
        raise InvalidRecordError(
            "nothing to build", expected="[base] and the other sections, or [[step]]"
        )
    check_graph(
        steps,
        others=set(pipeline.nodes if pipeline else ()),
        reserved=set(pipeline.reserved if pipeline else ()),
    )
    return Recipe(
        name=name,
        distributions=environment,
        numerics=numerics,
        minimum_grade=grade,
        pipeline=pipeline,
        steps=steps,
        sections=_section_digests(
            {
                "name": name,
                "environment": environment,
                "numerics": numerics,
                "release": () if grade is None else {"minimum_grade": grade},
                "step": [step.to_value() for step in steps],
            }
            | ({name: getattr(pipeline, name) for name in SECTIONS} if pipeline else {})
        ),
    )


def _section_digests(sections: Mapping[str, object]) -> Mapping[str, Digest]:
    """The digest of each section's value, defaults filled in; what is not there is left out."""
    return {
        name: Digest.of_record(cbor.encode(plain(value)), RecordKind.RECIPE)
        for name, value in sorted(sections.items())
        if value not in ((), [], None)
    }


def _distributions(value: object) -> tuple[str, ...]:
    fields = Fields(value)
    if not fields.has("distributions"):
        fields.done()
        return DISTRIBUTIONS
    names = texts(fields, "distributions", parse_distribution_name)
    fields.done()
    return tuple(sorted(set(names)))


def _minimum_grade(value: object) -> str:
    fields = Fields(value)
    grade = fields.parsed("minimum_grade", parse_grade)
    fields.done()
    return grade


def _numerics(unnamed: str, value: object) -> Numerics:
    fields = Fields(value)
    made = Numerics(
        cls=fields.text("class", default=unnamed),
        seed=fields.integer("seed", default=0),
        threads=fields.integer("threads", default=1),
    )
    fields.done()
    return made
