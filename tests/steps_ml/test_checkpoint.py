"""A training in segments ends in the bytes of one that runs through."""

from __future__ import annotations

import json

import pytest

from tests.steps_ml.calling import (
    LABELS,
    feedback_row,
    files_of,
    pair_row,
    run_step,
    write_lines,
    write_rows,
)
from tests.support.models import tiny_llama, tiny_rows

# Importing the trainers takes ten seconds and warns on the way.
pytestmark = [pytest.mark.ml, pytest.mark.filterwarnings("ignore")]

STEPS = 7


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    rows = [json.loads(line) for line in tiny_rows(root / "rows").read_text().splitlines()][:14]
    answers = [(one["text"], one["ward"]) for one in rows]
    pairs = [
        pair_row(at, one["text"], one["ward"], next(w for w in LABELS if w != one["ward"]))
        for at, one in enumerate(rows, 1)
    ]
    feedback = [
        feedback_row(at, one["text"], one["ward"], good=at % 2 == 0)
        for at, one in enumerate(rows, 1)
    ]
    return {
        "model": tiny_llama(root / "model"),
        "answers": write_rows(root / "answers", "train.jsonl", answers),
        "pairs": write_lines(root / "pairs", "train.jsonl", pairs),
        "feedback": write_lines(root / "feedback", "train.jsonl", feedback),
    }


def trained(step, inputs, root, rows, *, checkpoint=None, stop=0, **params):
    given = {"compute_dtype": "fp32", "learning_rate": "5e-3", "max_steps": STEPS, "batch_size": 4}
    given |= {"warmup_steps": 2, "schedule": "cosine"} | params
    folders = {"model": inputs["model"], "train": inputs[rows]}
    if checkpoint is not None:
        folders["checkpoint"] = checkpoint
    return run_step(
        step,
        root,
        inputs=folders,
        params=given | ({"stop_after": stop} if stop else {}),
        outputs=("checkpoint",) if stop else None,
        portable=(1, None),
        seed=3,
    )


@pytest.mark.parametrize(
    ("step", "rows", "params"),
    [
        ("sft", "answers", {"lora_dropout": "0.1"}),
        ("sft", "answers", {"adapter": "adalora", "adalora_cooldown": 1}),
        ("sft", "answers", {"adapter": "pissa", "optimiser": "galore", "galore_rank": 4}),
        ("sft", "answers", {"optimiser": "badam", "badam_interval": 2}),
        ("sft", "answers", {"optimiser": "ema", "ema_decay": "0.5"}),
        ("sft", "answers", {"optimiser": "lisa", "lisa_interval": 2, "lisa_layers": 1}),
        ("curriculum", "answers", {}),
        ("dpo", "pairs", {}),
        ("bco", "feedback", {}),
    ],
)
def test_a_training_in_segments_ends_in_the_same_bytes(step, rows, params, inputs, tmp_path):
    """ALG-10, ALG-11, ADPT-76: 14 rows by 4: segments end within an epoch and at its end."""
    whole = trained(step, inputs, tmp_path / "whole", rows, **params)
    place = None
    for stop in (3, 4):
        made = trained(
            step, inputs, tmp_path / f"{stop}", rows, checkpoint=place, stop=stop, **params
        )
        place = made.folder("checkpoint")
    last = trained(step, inputs, tmp_path / "last", rows, checkpoint=place, **params)
    for output in ("metrics", "trace", "adapter"):
        assert files_of(last.folder(output)) == files_of(whole.folder(output)), output


def test_a_checkpoint_is_the_same_whatever_it_was_made_in(inputs, tmp_path):
    """ALG-10: it is an output like any other."""
    once = trained("sft", inputs, tmp_path / "once", "answers", stop=4)
    first = trained("sft", inputs, tmp_path / "first", "answers", stop=2)
    then = trained(
        "sft", inputs, tmp_path / "then", "answers", checkpoint=first.folder("checkpoint"), stop=4
    )
    found = files_of(once.folder("checkpoint"))
    assert found == files_of(then.folder("checkpoint"))
    assert sorted(found) == [
        *("checkpoint.json", "generator.bin", "state.safetensors"),
        *("trace.json", "trace.jsonl"),
    ]


def test_a_checkpoint_of_another_training_is_refused(inputs, tmp_path):
    """ALG-12."""
    first = trained("sft", inputs, tmp_path / "first", "answers", stop=2)
    other = trained(
        "sft",
        inputs,
        tmp_path / "other",
        "answers",
        checkpoint=first.folder("checkpoint"),
        lora_r=4,
    )
    assert other.refusal()["reason"] == "a checkpoint of another training"
