"""TOML is written one way, and the standard library reads it back."""

import tomllib

import pytest

from kolm_build.core.toml_writer import render
from kolm_build.errors import InvalidRecordError


def test_values_come_before_tables_and_arrays_one_item_a_line():
    value = {"b": {"y": 1, "z": ["a", "b"]}, "a": "x", "c": [{"n": [{"m": 1}]}, {"n": True}]}
    assert render(value, header=("Hello.",)) == (
        "# Hello.\n\n"
        'a = "x"\n\n'
        '[b]\ny = 1\nz = [\n    "a",\n    "b",\n]\n\n'
        "[[c]]\n\n[[c.n]]\nm = 1\n\n"
        "[[c]]\nn = true\n"
    )
    assert tomllib.loads(render(value)) == value


@pytest.mark.parametrize("text", ["", 'a"b\\', "\x00\x1f\x7f\x85", "é😀", "a\nb\tc\r", "\u2028"])
def test_any_text_survives(text):
    assert tomllib.loads(render({"key": text, 'odd "key"': text})) == {
        "key": text,
        'odd "key"': text,
    }


@pytest.mark.parametrize("value", [1.5, None, b"x", {"a"}, "\ud800", [1.5]])
def test_what_our_files_do_not_have_is_refused(value):
    with pytest.raises(InvalidRecordError):
        render({"a": value})
