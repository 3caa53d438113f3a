"""Rows of every schema and the lines they become."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

from kolm_build.core import strict_json
from kolm_build.core.fields import Fields
from kolm_build.steps._examples import read_examples
from kolm_build.steps._kept_out import KeptOut
from kolm_build.steps._schemas import SHAPES

_ROW = {
    "text": "Two {and} two",
    "who": "Ada",
    "a": "four",
    "b": "fi\u0065\u0301ve",
    "up": True,
    "by": "5e-1",
    "work": ["2 + 2", "= \u0035"],
    "right": [True, False],
    "n": 4,
}
_PROMPT = {"prompt": "{who} asks: {text}?"}
_CASES = (
    ("answers", _PROMPT | {"answer": '{{"sum": "{a}"}}'}, "", ""),
    ("answers", _PROMPT | {"answer": "{n}"}, "Be brief.", "who"),
    ("texts", {"text": "{who}: {text}"}, "", ""),
    ("pairs", _PROMPT | {"chosen": "{a}", "rejected": "{b}"}, "", ""),
    ("pairs", _PROMPT | {"chosen": "{b}", "rejected": "{a}", "margin": "{by}"}, "", "who"),
    ("feedback", _PROMPT | {"answer": "{a}", "good": "{up}"}, "", ""),
    ("feedback", _PROMPT | {"answer": "{b}", "good": "false{x}", "weight": "{by}"}, "", ""),
    ("prompts", _PROMPT, "Be brief.", ""),
    ("prompts", _PROMPT | {"reference": "{a}", "fields": "n\nup"}, "", ""),
    ("steps", _PROMPT | {"steps": "work", "labels": "right"}, "", ""),
    ("rationales", _PROMPT | {"answer": "{n}", "rationale": "{a}: {b}"}, "Be brief.", "who"),
)


def vectors() -> dict[str, object]:
    return {"lines": [_vector(*case) for case in _CASES]}


def _vector(schema: str, keys: dict[str, str], system: str, group: str) -> dict[str, object]:
    row = _ROW | {"x": ""}
    shape = SHAPES[schema].take(Fields(keys))
    with TemporaryDirectory() as folder:
        file = Path(folder, "rows.jsonl")
        file.write_text(json.dumps(row))
        (example,) = read_examples(file, "jsonl", shape, group=group, system=system)
    return {
        "schema": schema,
        "keys": keys,
        "system": system,
        "group": group,
        "row": row,
        "line": strict_json.dumps(example.value).decode(),
        "compared": KeptOut.of(example).line.decode().rstrip("\n"),
    }
