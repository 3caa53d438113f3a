"""Records as plain values: maps by field name, arrays, text, integers."""

from __future__ import annotations

from dataclasses import Field, fields, is_dataclass


def plain(value: object) -> object:
    """`value` as a plain value: records as maps, tuples as arrays.

    A field that is None by default and is None is left out, so that a record has the form that it
    had before there was such a field.
    """
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if is_dataclass(value):
        named = ((field, getattr(value, field.name)) for field in fields(value))
        return {field.name: plain(one) for field, one in named if not _is_unsaid(field, one)}
    return value


def _is_unsaid(field: Field[object], value: object) -> bool:
    return value is None and field.default is None
