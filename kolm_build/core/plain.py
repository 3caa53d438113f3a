"""Records as plain values: maps by field name, arrays, text, integers."""

from __future__ import annotations

from dataclasses import fields, is_dataclass


def plain(value: object) -> object:
    """`value` as a plain value: records as maps, tuples as arrays."""
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    return value
