"""Whatever a row holds, where it is too long it is refused by its number, and never cut off."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from kolm_build.core import strict_json
from kolm_build.errors import InvalidDataError
from tests.steps_ml.calling import write_lines
from tests.steps_ml.tables import objective
from tests.support.models import tiny_llama

# Importing the trainers takes ten seconds and warns on the way.
pytestmark = [pytest.mark.ml, pytest.mark.filterwarnings("ignore")]

LONG = "word " * 40
SHORT = {
    "answers": {"answer": "lung"},
    "feedback": {"answer": "lung", "good": True, "weight": "1"},
    "pairs": {"chosen": "lung", "rejected": "skin", "margin": ""},
    "prompts": {"reference": "lung", "fields": {}},
    "rationales": {"answer": "lung", "rationale": "it coughs"},
    "steps": {"steps": ["a cough"], "labels": [True]},
    "texts": {"text": "a cough"},
}
PROMPT = {"messages": [{"role": "user", "content": LONG}]}
CASES = [
    ("sft", "answers", {"answer": LONG}, ""),
    ("curriculum", "answers", {"answer": LONG}, ""),
    ("spin", "answers", {"answer": LONG}, ""),
    ("spin", "answers", PROMPT, ""),
    ("texts", "texts", {"text": LONG}, ""),
    ("weighted-sft", "feedback", {"answer": LONG}, ""),
    ("kto", "feedback", {"answer": LONG}, ""),
    ("dpo", "pairs", {"chosen": LONG}, ", chosen"),
    ("dpo", "pairs", {"rejected": LONG}, ", rejected"),
    ("reward-bt", "pairs", {"rejected": LONG}, ", rejected"),
    ("prm", "steps", {"steps": [LONG]}, ""),
    ("grpo", "prompts", PROMPT, ""),
    ("online-dpo", "prompts", PROMPT, ""),
    ("rationale", "rationales", {"answer": LONG}, ", answer"),
    ("rationale", "rationales", {"rationale": LONG}, ", rationale"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from kolm_build.runtime.loading import load

    return load(tiny_llama(tmp_path_factory.mktemp("long") / "model"), dtype=torch.float32)


def line(number, schema, change):
    turns = [] if schema == "texts" else [{"role": "user", "content": "a cough"}]
    row = {"group": "", "id": f"sha256:{number:064x}", "messages": turns, **SHORT[schema]}
    return strict_json.dumps(row | change)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}{case[3]}")
def test_a_row_with_too_many_tokens_is_refused_by_its_number(tmp_path, model, case):
    """SFT-4: of two answers the one that is too long is named."""
    from kolm_build.steps._sequences import Tokeniser

    name, schema, change, field = case
    lines = [line(1, schema, {}), line(2, schema, change)]
    file = write_lines(tmp_path / "rows", "train.jsonl", lines) / "train.jsonl"
    given = SimpleNamespace(
        tokens=Tokeniser(model=model, max_length=130),
        rows=lambda: file,
        model=model,
        change=None,
    )
    with pytest.raises(InvalidDataError, match="too many tokens") as caught:
        objective(name).examples(given)
    assert caught.value.file == "train.jsonl"
    assert caught.value.where == f"row 2 (sha256:{2:064x}){field}"
    assert caught.value.expected == "at most 130 tokens"
