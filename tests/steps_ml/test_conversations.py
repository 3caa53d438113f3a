"""Rows become tokens in one way, and too long ones are refused."""

from __future__ import annotations

import pytest

from kolm_build.errors import InvalidDataError, InvalidRecordError
from kolm_build.steps._conversations import read_conversations
from tests.steps_ml.calling import row, write_rows

PAIRS = [("Ada reports low mood", "mind"), ("Bo reports hives on both arms", "skin")]


def test_rows_read_as_conversations(tmp_path):
    folder = write_rows(tmp_path / "train", "train.jsonl", PAIRS)
    first, second = read_conversations(folder / "train.jsonl")
    assert first.messages == ({"role": "user", "content": "Ada reports low mood"},)
    assert second.answer == "skin"


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b'{"id":"x"}',
        row(2, "a", "b")[:-1],
        row(2, "a", "b").replace(b'"group"', b'"groups"'),
        row(2, "a", "b").replace(b'"role"', b'"rule"'),
    ],
)
def test_a_line_that_is_no_row_is_refused_by_its_number(tmp_path, line):
    path = tmp_path / "train.jsonl"
    path.write_bytes(row(1, "a", "b") + b"\n" + line + b"\n")
    with pytest.raises(InvalidRecordError) as caught:
        read_conversations(path)
    assert caught.value.file == "train.jsonl"
    assert (caught.value.where or "").startswith("row 2")


def test_a_file_without_rows_is_refused(tmp_path):
    (tmp_path / "train.jsonl").touch()
    with pytest.raises(InvalidDataError, match="no rows"):
        read_conversations(tmp_path / "train.jsonl")
