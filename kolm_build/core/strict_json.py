"""Strict JSON: one way to write a value, and nothing read that another parser could read otherwise.

Written bytes are RFC 8785 for values of text, integers, booleans, null, arrays and objects
(spec/json.md). There are no floats: a decimal number is text. Needs the standard library alone,
because the verifier and the light steps read with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from kolm_build.errors import InvalidRecordError

MAX_BYTES = 1 << 28
MAX_DEPTH = 64
MAX_INTEGER = (1 << 53) - 1
_SCALARS = frozenset({str, int, bool, type(None)})
_ESCAPE = b"\\u"

Value = None | bool | int | str | list["Value"] | dict[str, "Value"]


def dumps(value: object) -> bytes:
    """The one encoding of `value`. Tuples are arrays.

    Raises:
        InvalidRecordError: `value` holds a float, an integer beyond 2^53 - 1, a key that is not
            text, a lone surrogate, or anything else that strict JSON does not have.
    """
    text = json.dumps(_canonical(value, 0), ensure_ascii=False, separators=(",", ":"))
    return text.encode()


def loads(data: bytes) -> Value:
    """The value that `data` holds.

    Raises:
        InvalidRecordError: `data` is not one JSON value in UTF-8, or has a duplicate key, a
            float, a constant such as NaN, an integer beyond 2^53 - 1, a lone surrogate, a byte
            order mark, too many bytes or too many levels.
    """
    if len(data) > MAX_BYTES:
        raise _bad(f"more than {MAX_BYTES} bytes", f"{len(data)} bytes")
    try:
        value: Value = json.loads(
            data.decode(),
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_no_float,
            parse_constant=_no_float,
        )
    except UnicodeDecodeError as error:
        raise _bad("not UTF-8", f"byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise _bad(error.msg, f"line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise _bad(f"nested deeper than {MAX_DEPTH} levels") from None
    if _ESCAPE in data or data.count(b"[") + data.count(b"{") > MAX_DEPTH:
        _check(value)  # else there is neither a surrogate nor depth
    return value


def _bad(reason: str, actual: str | None = None) -> InvalidRecordError:
    return InvalidRecordError(f"not strict JSON: {reason}", actual=actual)


def _utf16(name: str) -> bytes:
    """The order of RFC 8785: by UTF-16 code units."""
    return name.encode("utf-16-be")


def _canonical(value: object, depth: int) -> Value:
    """`value` with the keys of every object in order, checked on the way."""
    if depth > MAX_DEPTH:
        raise _bad(f"nested deeper than {MAX_DEPTH} levels")
    if type(value) not in _SCALARS and isinstance(value, Mapping):
        return _canonical_object(value, depth)
    if isinstance(value, list | tuple):
        return _canonical_list(value, depth)
    _check_scalar(value)
    return value  # type: ignore[return-value]  # checked


def _canonical_list(value: Sequence[object], depth: int) -> Value:
    made: list[Value] = []
    try:
        made.extend(_canonical(item, depth + 1) for item in value)
    except InvalidRecordError as error:
        raise error.under(f"[{len(made)}]") from None
    return made


def _canonical_object(value: Mapping[object, object], depth: int) -> Value:
    names = _ordered(value)
    made: dict[str, Value] = {}
    try:
        for name in names:
            made[name] = _canonical(value[name], depth + 1)
    except InvalidRecordError as error:
        raise error.under(names[len(made)]) from None
    return made


def _ordered(names: Iterable[object]) -> list[str]:
    """Keys in the order of RFC 8785, which is that of their letters where those are ASCII."""
    texts: list[str] = []
    for name in names:
        if type(name) is not str:
            raise _bad("a key that is not text", repr(name)[:80])
        texts.append(name)
    if "".join(texts).isascii():
        return sorted(texts)
    for text in texts:
        _check_scalar(text)
    return sorted(texts, key=_utf16)


def _check_scalar(value: object) -> None:
    kind = type(value)
    if kind is str:
        try:
            value.encode()  # type: ignore[attr-defined]  # kind is str
        except UnicodeEncodeError:
            raise _bad("a lone surrogate", ascii(value)[:80]) from None
    elif kind is int:
        if abs(value) > MAX_INTEGER:  # type: ignore[arg-type]  # kind is int
            raise _bad("an integer beyond 2^53 - 1", str(value)[:80])
    elif value is not None and kind is not bool:
        raise _bad(
            "only text, integers, booleans, null, arrays and objects can be written",
            f"{kind.__name__} {value!r}"[:80],
        )


def _check(value: Value) -> None:
    """Refuse surrogates and depth in a value that was read."""
    level: list[Value] = [value]
    for _ in range(MAX_DEPTH + 1):
        below: list[Value] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item)
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
            else:
                _check_scalar(item)
        if not below:
            return
        level = below
    raise _bad(f"nested deeper than {MAX_DEPTH} levels")


def _object(pairs: list[tuple[str, Value]]) -> dict[str, Value]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise _bad("a repeated key", ascii(twice)[:80])
    return value


def _integer(text: str) -> int:
    if len(text) > 17 or text == "-0":
        raise _bad("an integer out of range", text[:80])
    value = int(text)
    _check_scalar(value)
    return value


def _no_float(text: str) -> Value:
    raise InvalidRecordError(
        "not strict JSON: a number that is not an integer",
        actual=text[:80],
        advice="A decimal number is written as text.",
    )
