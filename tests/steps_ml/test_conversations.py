"""Rows become tokens in one way, and too long ones are refused."""

from __future__ import annotations

import json

import pytest

from kolm_build.errors import InvalidDataError, InvalidRecordError
from kolm_build.steps._conversations import (
    Feedback,
    Pair,
    Prompt,
    Stepwise,
    Text,
    read_conversations,
    read_feedback,
    read_pairs,
    read_prompts,
    read_steps,
    read_texts,
)
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


USER = {"role": "user", "content": "Two and two?"}
COMMON = {"id": "sha256:00", "group": "g", "messages": [USER]}
KEPT = {"id": "sha256:00", "group": "g", "messages": (USER,)}

TEXT = COMMON | {"messages": [], "text": "Once."}
PAIR = COMMON | {"chosen": "4", "rejected": "5", "margin": "0.5"}
VOTE = COMMON | {"answer": "4", "good": True, "weight": "2"}
ASKED = COMMON | {"reference": "", "fields": {"sum": "4"}}
WORKED = COMMON | {"steps": ["2 + 2", "is 5"], "labels": [True, False]}


def _line(tmp_path, value):
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(value) + "\n")
    return path


@pytest.mark.parametrize(
    ("read", "value", "row"),
    [
        (read_texts, TEXT, Text(id="sha256:00", group="g", text="Once.")),
        (read_pairs, PAIR, Pair(**KEPT, chosen="4", rejected="5", margin="0.5")),
        (
            read_pairs,
            PAIR | {"margin": ""},
            Pair(**KEPT, chosen="4", rejected="5", margin=""),
        ),
        (read_feedback, VOTE, Feedback(**KEPT, answer="4", good=True, weight="2")),
        (read_prompts, ASKED, Prompt(**KEPT, reference="", fields={"sum": "4"})),
        (
            read_steps,
            WORKED,
            Stepwise(**KEPT, steps=("2 + 2", "is 5"), labels=(True, False)),
        ),
    ],
)
def test_a_row_of_each_schema_reads_as_it_is_written(tmp_path, read, value, row):
    """DATA-16."""
    assert read(_line(tmp_path, value)) == (row,)


@pytest.mark.parametrize(
    ("read", "value", "where"),
    [
        (read_texts, TEXT | {"text": " "}, "text"),
        (read_texts, TEXT | {"messages": [USER]}, "messages"),
        (read_pairs, PAIR | {"chosen": ""}, "chosen"),
        (read_pairs, PAIR | {"rejected": "4"}, "rejected"),
        (read_pairs, PAIR | {"margin": "0.50"}, "margin"),
        (read_pairs, PAIR | {"margin": "-1"}, "margin"),
        (read_pairs, PAIR | {"margin": 1}, "margin"),
        (read_pairs, PAIR | {"margin": "wide"}, "margin"),
        (read_feedback, VOTE | {"answer": ""}, "answer"),
        (read_feedback, VOTE | {"good": "yes"}, "good"),
        (read_feedback, VOTE | {"good": 1}, "good"),
        (read_feedback, VOTE | {"weight": "0"}, "weight"),
        (read_feedback, VOTE | {"weight": ""}, "weight"),
        (read_feedback, VOTE | {"weight": "1e-3"}, "weight"),
        (read_prompts, ASKED | {"fields": {"sum": 4}}, "fields.sum"),
        (read_prompts, ASKED | {"fields": []}, "fields"),
        (read_steps, WORKED | {"steps": [], "labels": []}, "steps"),
        (read_steps, WORKED | {"steps": ["2", " "]}, "steps"),
        (read_steps, WORKED | {"labels": [True]}, "labels"),
        (read_steps, WORKED | {"labels": [True, 0]}, "labels[1]"),
        (read_conversations, PAIR, "answer"),
        (read_pairs, VOTE, "chosen"),
        (read_steps, WORKED | {"more": ""}, "more"),
    ],
)
def test_a_line_of_another_shape_is_refused_by_row_and_field(tmp_path, read, value, where):
    """DATA-16."""
    with pytest.raises(InvalidRecordError) as caught:
        read(_line(tmp_path, value))
    assert caught.value.where == f"row 1.{where}"
