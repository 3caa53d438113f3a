"""Verifiers: which outputs are acceptable, whether they are right or not (spec/evaluation.md).

A verifier is text: ``none``, ``labels``, ``regex:PATTERN`` or ``json-schema:SCHEMA``. Needs the
standard library alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from kolm_build.core import strict_json
from kolm_build.core.fields import Fields
from kolm_build.errors import InvalidRecordError

_TYPES: Mapping[str, tuple[type, ...]] = {
    "array": (list,),
    "boolean": (bool,),
    "integer": (int,),
    "null": (type(None),),
    "number": (int, float),
    "object": (dict,),
    "string": (str,),
}

Accepts = Callable[[str], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verifier:
    """A check that an output passes or not.

    Attributes:
        accepts: Whether an output, without the space around it, passes.
    """

    accepts: Accepts

    @classmethod
    def parse(cls, text: str, labels: Sequence[str]) -> Self:
        """The verifier that `text` describes; `labels` are the recipe's.

        Raises:
            InvalidRecordError: It is no verifier, or its pattern or schema is bad.
        """
        kind, _, rest = text.partition(":")
        try:
            return cls(accepts=_accepts(kind, rest, labels))
        except InvalidRecordError as error:
            raise error.under("verifier") from None


def _accepts(kind: str, rest: str, labels: Sequence[str]) -> Accepts:
    if kind == "none" and not rest:
        return lambda _output: True
    if kind == "labels" and not rest:
        return _in(labels)
    if kind == "regex":
        return _matching(rest)
    if kind == "json-schema":
        return _fitting(rest)
    raise InvalidRecordError(
        "unknown verifier",
        expected="none, labels, regex:PATTERN or json-schema:SCHEMA",
        actual=repr(f"{kind}:{rest}" if rest else kind)[:80],
    )


def _in(labels: Sequence[str]) -> Accepts:
    if not labels:
        raise InvalidRecordError("the verifier 'labels' needs labels", where="labels")
    known = frozenset(labels)
    return lambda output: output in known


def _matching(pattern: str) -> Accepts:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InvalidRecordError(
            "not a regular expression", where="regex", actual=str(error)
        ) from None
    return lambda output: compiled.fullmatch(output) is not None


def _fitting(text: str) -> Accepts:
    schema = Schema.from_value(strict_json.loads(text.encode()))

    def accepts(output: str) -> bool:
        try:
            value = json.loads(output, parse_constant=_refuse, object_pairs_hook=_unrepeated)
        except (ValueError, RecursionError):
            return False
        return schema.accepts(value)

    return accepts


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """The part of JSON Schema that is read here; another keyword is an error.

    Attributes:
        types: The types a value may have; empty for any.
        values: The values it may be; None for any.
        properties: Schemas of an object's values, by key.
        required: Keys an object must have.
        closed: Whether it may have no keys but those of `properties`.
        items: Schema of an array's values.
    """

    types: tuple[type, ...]
    values: tuple[object, ...] | None
    properties: Mapping[str, Schema]
    required: tuple[str, ...]
    closed: bool
    items: Schema | None

    @classmethod
    def from_value(cls, value: object) -> Schema:
        """The schema in `value`, strict."""
        fields = Fields(value)
        schema = cls(
            types=_types(fields),
            values=tuple(fields.array("enum")) if fields.has("enum") else None,
            properties={
                name: cls.from_value(part) for name, part in fields.table("properties").items()
            },
            required=fields.records("required", _text),
            closed=not fields.flag("additionalProperties", default=True),
            items=cls.from_value(fields.table("items")) if fields.has("items") else None,
        )
        fields.done()
        return schema

    def accepts(self, value: object) -> bool:
        """Whether `value` fits."""
        if self.types and type(value) not in self.types:
            return False
        if self.values is not None and not any(_same(value, one) for one in self.values):
            return False
        if isinstance(value, dict):
            return self._accepts_object(value)
        if isinstance(value, list) and self.items is not None:
            return all(self.items.accepts(item) for item in value)
        return True

    def _accepts_object(self, value: Mapping[str, object]) -> bool:
        if not set(self.required) <= set(value):
            return False
        if self.closed and not set(value) <= set(self.properties):
            return False
        return all(
            schema.accepts(value[name]) for name, schema in self.properties.items() if name in value
        )


def _types(fields: Fields) -> tuple[type, ...]:
    name = fields.text("type", default="")
    if name and name not in _TYPES:
        raise InvalidRecordError(
            "unknown type", where="type", expected=", ".join(_TYPES), actual=repr(name)
        )
    return _TYPES.get(name, ())


def _text(value: object) -> str:
    if type(value) is not str:
        raise InvalidRecordError("not text", actual=repr(value)[:80])
    return value


def _same(one: object, other: object) -> bool:
    """Equal as JSON: `true` is not 1."""
    return type(one) is type(other) and one == other


def _unrepeated(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a repeated key")
    return value


def _refuse(text: str) -> object:
    raise ValueError(text)
