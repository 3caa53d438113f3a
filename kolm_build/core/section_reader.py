"""Reading the sections of a recipe's pipeline: names, bounds, defaults (spec/recipe.md)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TypeVar

from kolm_build.core import strict_json
from kolm_build.core.bounded import choice, integer, params, texts, unknown_name
from kolm_build.core.decimals import render_decimal
from kolm_build.core.fields import Fields
from kolm_build.core.kscore import Thresholds
from kolm_build.core.name import parse_part
from kolm_build.core.provenance import read_provenance
from kolm_build.core.schemas import ANSWERS, SCHEMAS, Schema
from kolm_build.core.sections import (
    BASE,
    FORMATS,
    NUMBERED,
    Base,
    Data,
    Device,
    Evaluate,
    Gate,
    Origin,
    Pipeline,
    Quantise,
    Score,
    Split,
    Train,
)
from kolm_build.core.source import parse_script, parse_source
from kolm_build.core.strict_json import MAX_INTEGER
from kolm_build.errors import InvalidRecordError

DTYPES = ("bf16", "fp16", "fp32")
SECTIONS = (
    *("base", "data", "sets", "models", "split", "train", "quantise"),
    *("evaluate", "score", "gate"),
)

T = TypeVar("T")


def read_pipeline(fields: Fields) -> Pipeline | None:
    """The pipeline's sections, all or none of them.

    Raises:
        InvalidRecordError: A section is missing beside others, or is not as the spec says.
    """
    given = [name for name in SECTIONS if fields.has(name)]
    if not given:
        for name in SECTIONS:
            fields.table(name)  # asked for, so that a misspelt section gets a suggestion
        return None
    for name in ("base", "data", "evaluate", "score"):
        if not fields.has(name):
            raise InvalidRecordError(
                "missing section", where=name, expected=f"[{name}], since there is [{given[0]}]"
            )
    sets = fields.record("sets", partial(_named, parse_part, _set))
    models = fields.record("models", _models)
    made = Pipeline(
        base=fields.record("base", _base),
        data=fields.record("data", _data),
        sets=sets,
        models=models,
        split=fields.record("split", _split),
        train=_train(fields, dict(sets), dict(models)),
        quantise=_quantise(fields, dict(sets)),
        evaluate=fields.record("evaluate", _evaluate),
        score=fields.record("score", _score),
        gate=fields.record("gate", _gate),
    )
    if made.quantise is not None and made.attached is not None:
        raise InvalidRecordError(
            "a model with an adapter beside its weights cannot be quantised",
            where="quantise",
            expected="a last stage whose adapter can be merged, such as lora or full",
            actual=f"adapter {dict(made.attached.params)['adapter']!r}",
        )
    return made


def _origin(fields: Fields) -> Origin:
    source = fields.parsed("from", parse_source) if fields.has("from") else None
    script = fields.parsed("script", parse_script) if fields.has("script") else None
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


def _glob(text: str) -> str:
    if not text or any(sign.isspace() for sign in text):
        raise InvalidRecordError("not a file pattern", expected="such as *.safetensors")
    return text


def _models(value: object) -> tuple[tuple[str, Base], ...]:
    """The further models; one that a script makes of another names one that is made of none."""
    models = _named(_model_name, _model, value)
    known = {BASE, *(f"model-{name}" for name, model in models if not model.of)}
    for name, model in models:
        if model.of and model.of not in known:
            names = (one.removeprefix("model-") for one in known)
            raise unknown_name("model", model.of.removeprefix("model-"), names, where=f"{name}.of")
    return models


def _model(value: object) -> Base:
    fields = Fields(value)
    of = fields.text("of", default="")
    made = _read_base(fields)
    if of and made.origin.script is None:
        raise InvalidRecordError(
            "a model of another without a script", where="of", expected="script = … that makes it"
        )
    return replace(made, of=of if of in ("", BASE) else f"model-{of}")


def _base(value: object) -> Base:
    return _read_base(Fields(value))


def _read_base(fields: Fields) -> Base:
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


def _named(
    parse: Callable[[str], str], read: Callable[[object], T], value: object
) -> tuple[tuple[str, T], ...]:
    """Sorted (name, section) pairs of a table of sections."""
    fields = Fields(value)
    names = sorted(value)  # type: ignore[call-overload]  # Fields has checked that it is a map
    for name in names:
        try:
            parse(name)
        except InvalidRecordError as error:
            raise error.under(name) from None
    return tuple((name, fields.record(name, read)) for name in names)


def _model_name(text: str) -> str:
    if text == BASE or NUMBERED.fullmatch(text):
        raise InvalidRecordError("a name that another model has")
    return parse_part(text)


def _data(value: object) -> Data:
    fields = Fields(value)
    made = _rows(fields, (ANSWERS,), ANSWERS)
    fields.done()
    return made


def _set(value: object) -> Data:
    fields = Fields(value)
    made = _rows(fields, tuple(SCHEMAS), None)
    if fields.has("provenance"):
        made = replace(made, provenance=fields.record("provenance", read_provenance))
    fields.done()
    return made


def _rows(fields: Fields, schemas: tuple[str, ...], default: str | None) -> Data:
    name = choice(fields, "schema", schemas, default=default)
    schema = SCHEMAS[name]
    return Data(
        origin=_origin(fields),
        format=choice(fields, "format", FORMATS, default="jsonl"),
        schema=name,
        system=fields.text("system", default="") if schema.turns else "",
        parts=tuple(sorted(_parts(fields, schema))),
        group=fields.text("group", default=""),
    )


def _parts(fields: Fields, schema: Schema) -> Iterator[tuple[str, str]]:
    """What the schema asks for: templates, names of columns, lines of names."""
    for name in schema.templates:
        yield name, fields.parsed(name, _template)
    for name, default in schema.optional:
        yield name, fields.text(name, default=default)
    for name in schema.columns:
        yield name, fields.parsed(name, _column)
    if schema.more:
        columns = texts(fields, "fields", _column)
        if len(set(columns)) != len(columns):
            raise InvalidRecordError("a column is there twice", where="fields")
        yield "fields", "\n".join(sorted(columns))


def _column(text: str) -> str:
    if not text or "\n" in text or "{" in text:
        raise InvalidRecordError(
            "not the name of a column", expected="a name without braces", actual=repr(text)[:80]
        )
    return text


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


def _train(
    fields: Fields, sets: Mapping[str, Data], models: Mapping[str, Base]
) -> tuple[Train, ...]:
    """The stages. The catalogue is large: a recipe without any does not import it."""
    if not fields.has("train"):
        fields.array("train")  # asked for, so that a misspelt section gets a suggestion
        return ()
    from kolm_build.core.stage_reader import read_stages

    return read_stages(fields, sets=sets, models=models.keys())


def _quantise(fields: Fields, sets: Mapping[str, Data]) -> Quantise | None:
    """The section, if there is one: a recipe without it does not import the table of schemes."""
    if not fields.has("quantise"):
        fields.table("quantise")  # asked for, so that a misspelt section gets a suggestion
        return None
    from kolm_build.core.quantise_reader import read_quantise

    return fields.record("quantise", partial(read_quantise, sets))


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
    thresholds = Thresholds.read(fields)
    fields.done()
    return Gate(
        k_min=render_decimal(thresholds.k),
        accuracy_min=render_decimal(thresholds.accuracy),
        coverage_min=render_decimal(thresholds.coverage),
    )
