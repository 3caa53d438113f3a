"""Generation is greedy, batches change nothing, and likelihoods are exact."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kolm_build.core.numerics import Numerics
from kolm_build.numerics import native
from kolm_build.runtime.generate import continue_greedily, log_likelihoods, read_prompts
from kolm_build.runtime.loading import load
from kolm_build.steps._conversations import Conversation
from kolm_build.steps._generate import outputs_of
from kolm_build.steps._params import EvaluateParams
from tests.support.models import tiny_llama

WORDS = ("a dry cough", "low mood", "poor sleep", "hives on both arms", "a stiff knee", "thin skin")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    native.apply(Numerics(cls="native-1", seed=1))
    return load(tiny_llama(tmp_path_factory.mktemp("load") / "model"))


def prompts(count=4, length=20):
    generator = torch.Generator().manual_seed(5)
    return torch.randint(4, 260, (count, length), generator=generator).tolist()


def test_greedy_text_is_that_of_the_common_library(model):
    """EVAL-1: transformers' own generate is the oracle."""
    ids = prompts()
    found = model.continuations(ids, max_new_tokens=12)
    wanted = model.network.generate(
        input_ids=torch.tensor(ids),
        attention_mask=torch.ones(len(ids), len(ids[0]), dtype=torch.long),
        do_sample=False,
        max_new_tokens=12,
        pad_token_id=3,
    )
    for row, output in enumerate(found):
        assert output == wanted[row, len(ids[0]) :].tolist()[: len(output)]


def test_a_stop_token_ends_an_answer_and_is_part_of_it(model):
    """EVAL-1."""
    prefix = read_prompts(model.network, prompts())
    free = continue_greedily(prefix, max_new_tokens=6, stop_ids=set())
    stop = free[0][2]
    prefix = read_prompts(model.network, prompts())
    stopped = continue_greedily(prefix, max_new_tokens=6, stop_ids={stop})
    for full, cut in zip(free, stopped, strict=True):
        end = full.index(stop) + 1 if stop in full else len(full)
        assert cut == full[:end]


def test_of_equal_tokens_the_lowest_is_said(model):
    """EVAL-1."""
    prefix = read_prompts(model.network, prompts(count=1))
    level = replace(prefix, logits=torch.ones_like(prefix.logits))
    assert continue_greedily(level, max_new_tokens=1, stop_ids=set()) == [[0]]


@pytest.mark.parametrize("length", [1, 2, 5])
def test_likelihoods_are_those_of_one_forward_pass(model, length):
    """EVAL-3: against reading prompt and continuation together, without a cache."""
    ids, labels = prompts(count=3), prompts(count=4, length=length)
    found = log_likelihoods(read_prompts(model.network, ids), labels)
    for row, prompt in enumerate(ids):
        for column, label in enumerate(labels):
            with torch.no_grad():
                logits = model.network(input_ids=torch.tensor([prompt + label])).logits[0]
            chances = logits.log_softmax(-1)[len(prompt) - 1 : -1]
            wanted = sum(float(chances[at, token]) for at, token in enumerate(label))
            assert found[row][column] == pytest.approx(wanted, abs=1e-3)


def test_likelihoods_leave_the_prompts_as_they_were(model):
    ids = prompts()
    prefix = read_prompts(model.network, ids)
    log_likelihoods(prefix, prompts(count=2, length=3))
    found = continue_greedily(prefix, max_new_tokens=5, stop_ids=set())
    prefix = read_prompts(model.network, ids)
    assert found == continue_greedily(prefix, max_new_tokens=5, stop_ids=set())


@pytest.mark.parametrize("batch_size", [2, 3, 64])
def test_outputs_do_not_depend_on_the_batch(model, batch_size):
    """EVAL-2, EVAL-3: the same tokens and labels as one row at a time, in the rows' order."""
    rows = [
        Conversation(
            id=f"{number}",
            messages=({"role": "user", "content": f"{word} {number % 3}"},),
            answer="x",
            group="",
        )
        for number, word in enumerate(WORDS * 4)
    ]
    asking = {"max_new_tokens": 8, "labels": "bone\nlung\nmind\nskin\nab"}
    found = {
        size: outputs_of(
            model, rows, EvaluateParams.parse(asking | {"batch_size": size}), lambda _done: None
        )
        for size in (1, batch_size)
    }
    assert found[batch_size] == found[1]
    assert all(len(model.chat.prompt_ids(row.messages)) > 20 for row in rows)


def test_a_row_that_does_not_fit_the_window_is_refused(model):
    """EVAL-4."""
    from kolm_build.errors import InvalidDataError

    rows = [
        Conversation(
            id="sha256:x", messages=({"role": "user", "content": "x" * 600},), answer="", group=""
        )
    ]
    with pytest.raises(InvalidDataError, match="window") as caught:
        outputs_of(model, rows, EvaluateParams.parse({}), lambda _done: None)
    assert caught.value.file == "holdout.jsonl"
    assert caught.value.where == "row 1 (sha256:x)"
