"""Writing TOML: one text for one value, in the order given (spec/lock.md).

Only what our own files need: text, integers, booleans, arrays of text, tables, arrays of tables.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from kolm_build.errors import InvalidRecordError

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def render(table: Mapping[str, object], *, header: Sequence[str] = ()) -> str:
    """The TOML text of `table`, keys in their order; plain values before tables.

    Args:
        table: The value.
        header: Comment lines above it.

    Raises:
        InvalidRecordError: A value is of a kind that our files do not have.
    """
    lines = [f"# {line}" for line in header]
    if header:
        lines.append("")
    lines += _table(table, "")
    return "\n".join(lines).lstrip("\n") + "\n"


def _table(table: Mapping[str, object], path: str) -> Iterator[str]:
    """The lines of a table: its own keys, then the tables below it."""
    nested = {name: value for name, value in table.items() if _is_nested(value)}
    for name, value in table.items():
        if name not in nested:
            yield f"{_key(name)} = {_value(value)}"
    for name, value in nested.items():
        below = f"{path}.{_key(name)}" if path else _key(name)
        if isinstance(value, Mapping):
            yield from ("", f"[{below}]", *_table(value, below))
        else:
            for item in value:  # type: ignore[attr-defined]  # nested: a map or a sequence
                yield from ("", f"[[{below}]]", *_table(item, below))


def _is_nested(value: object) -> bool:
    if isinstance(value, Mapping):
        return True
    return isinstance(value, list | tuple) and len(value) > 0 and isinstance(value[0], Mapping)


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else _text(name)


def _value(value: object) -> str:
    kind = type(value)
    if kind is str:
        return _text(value)  # type: ignore[arg-type]  # kind is str
    if kind is bool:
        return "true" if value else "false"
    if kind is int:
        return str(value)
    if isinstance(value, list | tuple):
        return _array([_value(item) for item in value])
    raise InvalidRecordError("not a value of our TOML files", actual=repr(value)[:80])


def _array(items: Sequence[str]) -> str:
    """An array, one item a line where there are several: a change is one line of a diff."""
    if len(items) < 2:
        return f"[{''.join(items)}]"
    return "[\n" + "".join(f"    {item},\n" for item in items) + "]"


def _text(text: str) -> str:
    return f'"{"".join(map(_sign, text))}"'


def _sign(sign: str) -> str:
    if sign in _ESCAPES:
        return _ESCAPES[sign]
    if sign.isprintable():
        return sign
    point = ord(sign)
    if 0xD800 <= point <= 0xDFFF:
        raise InvalidRecordError("text must be UTF-8", actual=ascii(sign))
    return f"\\u{point:04x}" if point < 0x10000 else f"\\U{point:08x}"
