"""spec/json.md: one way to write, nothing read that another parser could read otherwise."""

import json

import pytest
import rfc8785

from kolm_build.core import strict_json
from kolm_build.errors import InvalidRecordError

VALUES = [
    *(None, True, False, 0, -1, strict_json.MAX_INTEGER, -strict_json.MAX_INTEGER),
    *("", "é", '"\\/\b\f\n\r\t\x00\x1f\x7f', "\u2028\u2029", "😀", "e\u0301"),
    [],
    {},
    [[], {}, [None]],
    {"b": 1, "a": {"z": [1, 2], "y": "x"}},
    {"\ue000": 1, "\U00010000": 2, "\u20ac": 3, "\r": 4, "1": 5, "\x80": 6, "ö": 7},
]


@pytest.mark.parametrize("value", VALUES, ids=ascii)
def test_what_is_written_is_rfc_8785_and_read_back(value):
    """JSON-1."""
    data = strict_json.dumps(value)
    assert data == rfc8785.dumps(value)
    assert strict_json.loads(data) == value


def test_keys_are_sorted_by_utf_16_code_units():
    """JSON-1: a supplementary character sorts before U+E000 though its code point is higher."""
    assert list(json.loads(strict_json.dumps({"\ue000": 1, "\U00010000": 2}))) == [
        "\U00010000",
        "\ue000",
    ]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" ",
        b"{",
        b"[1,]",
        b"{} {}",
        b"1 2",
        b"nul",
        b"'a'",
        b"[1,2",
        b'"\x01"',
        b'"\xff"',
        b'"\xed\xa0\x80"',
        b'"\\ud800"',
        b'{"\\udfff":1}',
        b"\xef\xbb\xbf{}",
        '{"a":1}'.encode("utf-16"),
        b'{"a":1,"a":1}',
        b'[{"x":{"a":1,"b":2,"a":3}}]',
        b"1.0",
        b"1e3",
        b"-0",
        b"NaN",
        b"Infinity",
        b"-Infinity",
        b"01",
        b"+1",
        b"9007199254740992",
        b"-9007199254740992",
        b"1" * 5000,
        b"[" * 66 + b"]" * 66,
        b"[" * 100_000,
        b'{"a":' * 65 + b"[]" + b"}" * 65,
        b"// x\n1",
    ],
)
def test_anything_else_is_refused(data):
    """JSON-3, JSON-4."""
    with pytest.raises(InvalidRecordError):
        strict_json.loads(data)


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"a": [1, 0.5]}, "a[1]"),
        ({"a": {"b": float("nan")}}, "a.b"),
        ([2**53], "[0]"),
        ({"a": "\ud800"}, "a"),
        ({"\ud800": 1}, None),
        ({1: 1}, None),
        ({"a": {1, 2}}, "a"),
        ({"a": b"bytes"}, "a"),
    ],
)
def test_what_cannot_be_written_is_refused_at_its_path(value, where):
    """JSON-2."""
    with pytest.raises(InvalidRecordError) as caught:
        strict_json.dumps(value)
    assert caught.value.where == where


def test_64_levels_are_read_and_written():
    """JSON-4."""
    value = []
    for _ in range(strict_json.MAX_DEPTH):
        value = [value]
    data = strict_json.dumps(value)
    assert strict_json.loads(data) == value
    with pytest.raises(InvalidRecordError, match="deeper"):
        strict_json.dumps([value])
    with pytest.raises(InvalidRecordError, match="deeper"):
        strict_json.loads(b"[" + data + b"]")


def test_too_many_bytes_are_refused(monkeypatch):
    """JSON-4."""
    monkeypatch.setattr(strict_json, "MAX_BYTES", 10)
    with pytest.raises(InvalidRecordError, match="more than 10 bytes"):
        strict_json.loads(b'"123456789"')


def test_space_around_is_allowed_in_what_others_wrote():
    assert strict_json.loads(b' { "a" : [ 1 ] }\n') == {"a": [1]}


def test_tuples_are_arrays():
    assert strict_json.dumps((1, (2,))) == b"[1,[2]]"
