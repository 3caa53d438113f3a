"""JSON Schemas that answers can follow: every keyword is one that is followed (GEN-16)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from kolm_build.errors import InvalidRecordError

_FOLLOWED = frozenset(
    [
        "$ref",
        "additionalProperties",
        "allOf",
        "anyOf",
        "const",
        "enum",
        "exclusiveMaximum",
        "exclusiveMinimum",
        "format",
        "items",
        "maxItems",
        "maxLength",
        "maxProperties",
        "maximum",
        "minItems",
        "minLength",
        "minProperties",
        "minimum",
        "multipleOf",
        "oneOf",
        "pattern",
        "patternProperties",
        "prefixItems",
        "properties",
        "required",
        "type",
    ]
)
_SAYS_NOTHING = frozenset(
    [
        "$comment",
        "$defs",
        "$id",
        "$schema",
        "default",
        "definitions",
        "description",
        "examples",
        "title",
    ]
)
_ONE = ("additionalProperties", "items")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_TABLES = ("$defs", "definitions", "patternProperties", "properties")

MAX_DEPTH = 200

_ADVICE = """Name a file with a JSON Schema, such as {"enum": ["yes", "no"]}."""


def check(text: str) -> None:
    """Refuse a schema that says something which would not be followed.

    Raises:
        InvalidRecordError: `text` is no JSON object, repeats a key, or has a keyword that is not
            followed; its path is named.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unrepeated)
    except (ValueError, RecursionError) as error:
        raise InvalidRecordError(
            "not JSON", where="JSON Schema", actual=str(error)[:90], advice=_ADVICE
        ) from None
    if not isinstance(value, dict):
        raise InvalidRecordError(
            "not a JSON object", where="JSON Schema", actual=text[:80], advice=_ADVICE
        )
    _check(value, "JSON Schema", 0)


def _check(schema: Mapping[str, object], where: str, depth: int) -> None:
    unknown = sorted(schema.keys() - _FOLLOWED - _SAYS_NOTHING)
    if unknown or depth > MAX_DEPTH:
        raise InvalidRecordError(
            "a keyword that is not followed",
            where=where,
            expected=", ".join(sorted(_FOLLOWED)),
            actual=", ".join(unknown)[:200] or f"more than {MAX_DEPTH} levels",
            advice="Leave it out of the schema, or say the same with a keyword that is followed.",
        )
    for path, part in _parts(schema):
        if isinstance(part, dict):
            _check(part, f"{where}.{path}", depth + 1)


def _parts(schema: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """The schemas inside, each with its path."""
    for key in _ONE:
        yield key, schema.get(key)
    for key in _LISTS:
        found = schema.get(key)
        for number, part in enumerate(found if isinstance(found, list) else ()):
            yield f"{key}[{number}]", part
    for key in _TABLES:
        table = schema.get(key)
        for name, part in table.items() if isinstance(table, dict) else ():
            yield f"{key}.{name}", part


def _unrepeated(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a repeated key")
    return value
