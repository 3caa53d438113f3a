"""Records as plain values: maps by field name, arrays, text, integers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import MappingProxyType

LATER: Mapping[str, bool] = MappingProxyType({"later": True})
"""Metadata of a field that records did not have at first: it is left out where it is empty, so
that what was digested before it came has the digest that it had."""


def plain(value: object) -> object:
    """`value` as a plain value: records as maps, tuples as arrays."""
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if is_dataclass(value):
        found = {field.name: getattr(value, field.name) for field in fields(value)}
        later = {field.name for field in fields(value) if field.metadata == LATER}
        return {name: plain(one) for name, one in found.items() if one or name not in later}
    return value
