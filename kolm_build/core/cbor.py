"""Canonical CBOR: the one encoding of every hashed record (spec/cbor.md).

The profile is small: text keys, 64-bit integers, byte strings, NFC text, arrays, maps, true,
false, null. No floats, tags or indefinite lengths. Decoding refuses whatever encoding would not
have written, so a value has exactly one encoding. RFC 8949 section 4.2.1; `cbor2` is the oracle
in the tests and not used here, because its canonical mode changed between releases.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from unicodedata import is_normalized

from kolm_build.errors import InvalidRecordError

MAX_DEPTH = 64
MAX_BYTES = 1 << 28

_TYPE_ERROR = "only text, bytes, integers, booleans, null, arrays and maps can be encoded"

Value = None | bool | int | bytes | str | list["Value"] | dict[str, "Value"]

_UINT, _NINT, _BYTES, _TEXT, _ARRAY, _MAP = range(6)
_WIDTHS = ((24, ">B"), (25, ">H"), (26, ">I"), (27, ">Q"))
_SIMPLE = {0xF4: False, 0xF5: True, 0xF6: None}


def encode(value: object) -> bytes:
    """The canonical encoding of `value`. Tuples encode as arrays.

    Raises:
        InvalidRecordError: `value` holds something outside the profile; `where` says what.
    """
    out: list[bytes] = []
    _encode(value, out, 0)
    return b"".join(out)


def text(value: str) -> bytes:
    """The encoding of text, without a detour for records that are spelt out."""
    return _text(value)


def natural(value: int) -> bytes:
    """The encoding of an integer that is not negative."""
    return _head(_UINT, value)


def array(items: Sequence[bytes]) -> bytes:
    """The encoding of an array whose items are encoded already."""
    return _head(_ARRAY, len(items)) + b"".join(items)


def decode(data: bytes) -> Value:
    """The value that `data` encodes.

    Raises:
        InvalidRecordError: `data` is not the canonical encoding of a value of the profile.
    """
    if len(data) > MAX_BYTES:
        raise InvalidRecordError("a record is too large", actual=f"{len(data)} bytes")
    reader = _Reader(bytes(data))
    value = reader.value(0)
    if reader.at != len(reader.data):
        raise reader.error("bytes after the record")
    return value


@lru_cache(maxsize=1024)
def _head(major: int, count: int) -> bytes:
    if count < _WIDTHS[0][0]:
        return bytes((major << 5 | count,))
    for index, (low, form) in enumerate(_WIDTHS):
        if count < 1 << (8 << index):
            return bytes((major << 5 | low,)) + struct.pack(form, count)
    raise InvalidRecordError("an integer needs more than 64 bits", actual=str(count))


def _encode(value: object, out: list[bytes], depth: int) -> None:
    if depth > MAX_DEPTH:
        raise InvalidRecordError(f"nested deeper than {MAX_DEPTH} levels")
    kind = type(value)
    if kind is str:
        out.append(_text(value))  # type: ignore[arg-type]  # kind is str
    elif kind is bytes:
        out.append(_head(_BYTES, len(value)))  # type: ignore[arg-type]  # kind is bytes
        out.append(value)  # type: ignore[arg-type]
    elif kind is bool or value is None:
        out.append(b"\xf6" if value is None else b"\xf5" if value else b"\xf4")
    elif kind is int:
        number: int = value  # type: ignore[assignment]  # kind is int
        out.append(_head(_UINT, number) if number >= 0 else _head(_NINT, -1 - number))
    elif kind is dict or isinstance(value, Mapping):
        _encode_map(value, out, depth + 1)  # type: ignore[arg-type]  # a map
    elif isinstance(value, list | tuple):
        _encode_array(value, out, depth + 1)
    else:
        raise InvalidRecordError(_TYPE_ERROR, actual=f"{kind.__name__} {value!r}"[:80])


def _encode_array(value: Sequence[object], out: list[bytes], depth: int) -> None:
    out.append(_head(_ARRAY, len(value)))
    for index, item in enumerate(value):
        try:
            _encode(item, out, depth)
        except InvalidRecordError as error:
            raise error.under(f"[{index}]") from None


def _encode_map(value: Mapping[object, object], out: list[bytes], depth: int) -> None:
    out.append(_head(_MAP, len(value)))
    for key, name in _ordered(tuple(value)):
        out.append(key)
        try:
            _encode(value[name], out, depth)
        except InvalidRecordError as error:
            raise error.under(name) from None


@lru_cache(maxsize=1024)
def _ordered(names: tuple[object, ...]) -> tuple[tuple[bytes, str], ...]:
    """The keys of a map in canonical order; records of one kind have the same keys again."""
    return tuple(sorted((_key(name), str(name)) for name in names))


def _key(name: object) -> bytes:
    if type(name) is not str:
        raise InvalidRecordError("a map key must be text", actual=repr(name)[:80])
    return _text(name)


def _text(value: str) -> bytes:
    return _short_text(value) if len(value) <= 64 else _any_text(value)


def _any_text(value: str) -> bytes:
    if not value.isascii() and not is_normalized("NFC", value):
        raise InvalidRecordError("text must be in Unicode form NFC", actual=ascii(value)[:80])
    try:
        data = value.encode()
    except UnicodeEncodeError as error:
        raise InvalidRecordError("text must be UTF-8", actual=ascii(value)[:80]) from error
    return _head(_TEXT, len(data)) + data


_short_text = lru_cache(maxsize=4096)(_any_text)
"""Keys and names come again and again."""


class _Reader:
    """A strict reader over `data`; `at` is the next byte."""

    __slots__ = ("at", "data")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def error(self, reason: str) -> InvalidRecordError:
        return InvalidRecordError(f"not canonical CBOR: {reason} at byte {self.at}")

    def value(self, depth: int) -> Value:
        if depth > MAX_DEPTH:
            raise self.error(f"nested deeper than {MAX_DEPTH} levels")
        if self.at >= len(self.data):
            raise self.error("the record ends early")
        first = self.data[self.at]
        if first in _SIMPLE:
            self.at += 1
            return _SIMPLE[first]
        major, count = self.head()
        if major == _UINT:
            return count
        if major == _NINT:
            return -1 - count
        if count > len(self.data) - self.at:
            raise self.error("a length beyond the end")
        if major in (_BYTES, _TEXT):
            return self.string(major, count)
        if major == _ARRAY:
            return [self.value(depth + 1) for _ in range(count)]
        return self.map(count, depth)

    def head(self) -> tuple[int, int]:
        first = self.data[self.at]
        major, low = first >> 5, first & 31
        if major > _MAP or low > _WIDTHS[-1][0]:
            raise self.error(f"initial byte 0x{first:02x} is outside the profile")
        self.at += 1
        if low < _WIDTHS[0][0]:
            return major, low
        width = 1 << (low - _WIDTHS[0][0])
        raw = self.data[self.at : self.at + width]
        count = int.from_bytes(raw, "big")
        if len(raw) < width or _head(major, count) != bytes((first,)) + raw:
            raise self.error("an integer that is not in its shortest form")
        self.at += width
        return major, count

    def string(self, major: int, count: int) -> bytes | str:
        raw = self.data[self.at : self.at + count]
        if major == _BYTES:
            self.at += count
            return raw
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            raise self.error("text that is not UTF-8") from None
        if not is_normalized("NFC", text):
            raise self.error("text that is not in Unicode form NFC")
        self.at += count
        return text

    def map(self, count: int, depth: int) -> dict[str, Value]:
        result: dict[str, Value] = {}
        last = b""
        for _ in range(count):
            start = self.at
            key = self.value(depth + 1)
            raw = self.data[start : self.at]
            if type(key) is not str:
                raise self.error("a map key that is not text")
            if raw <= last:
                raise self.error("map keys out of order or repeated")
            last = raw
            result[key] = self.value(depth + 1)
        return result
