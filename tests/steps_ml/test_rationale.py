"""Answers and reasons as two tasks: the loss is their weighted sum, the rows are checked."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kolm_build.core import strict_json
from kolm_build.core.fields import Fields
from tests.steps_ml.calling import files_of, run_step, write_lines, write_rows
from tests.support.models import tiny_llama

pytestmark = [pytest.mark.ml, pytest.mark.filterwarnings("ignore")]

ROWS = [
    ("a pain", "bone", "bones ache"),
    ("it is a cough", "lung", "lungs cough"),
    ("sad", "mind", "a mood"),
    ("a rash!", "skin", "it shows on the skin"),
]
WORDS = 6


def reasoned(number, prompt, answer, rationale, *before):
    """A line of a set of rationales."""
    turns = [*before, {"content": prompt, "role": "user"}]
    return strict_json.dumps(
        {
            "answer": answer,
            "group": "",
            "id": f"sha256:{number:064x}",
            "messages": turns,
            "rationale": rationale,
        }
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("rationale") / "model")


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    lines = [reasoned(at, *row) for at, row in enumerate(ROWS, 1)]
    return write_lines(tmp_path_factory.mktemp("rows") / "train", "train.jsonl", lines)


def trained(root, model, rows, step="rationale", **params):
    params = {"compute_dtype": "fp32", "learning_rate": "0.005", "epochs": 3, **params}
    return run_step(
        step, root, inputs={"model": model, "train": rows}, params=params, portable=(1, None)
    )


class Bigrams:
    """A network whose logits after a token are that token's row of a table."""

    def __init__(self):
        self.table = torch.randn(
            (WORDS, WORDS), generator=torch.Generator().manual_seed(8), requires_grad=True
        )

    def __call__(self, *, input_ids, attention_mask, logits_to_keep):
        del attention_mask
        return SimpleNamespace(logits=self.table[input_ids[:, logits_to_keep]])


SEQUENCES = [((1, 4, 2, 0), 2, (1, 5, 3, 3, 2, 0), 3), ((2, 3, 0), 1, (2, 5, 0), 2)]
"""Ids and start of an answer, of a rationale."""


def loss_by_hand(table, weight):
    """The mean over answer tokens and the weighted one over rationale tokens; NumPy."""

    def nll(ids, start):
        logs = table - np.log(np.exp(table).sum(axis=1, keepdims=True))
        return -sum(logs[ids[at - 1], ids[at]] for at in range(start, len(ids)))

    def mean(rows):
        return sum(nll(*row) for row in rows) / sum(len(ids) - start for ids, start in rows)

    return mean([one[:2] for one in SEQUENCES]) + weight * mean([one[2:] for one in SEQUENCES])


@pytest.mark.parametrize("weight", [0.0, 0.5, 2.0])
def test_the_loss_is_that_of_equation_3_and_its_gradient_of_finite_differences(weight):
    """DIST-70: independent, to 1e-6."""
    from kolm_build.steps._objective import Moment
    from kolm_build.steps._sequences import Continuation
    from kolm_build.steps.objectives.rationale import TAKE, Tasks

    made, network = TAKE(Fields({"rationale_weight": str(weight)})), Bigrams()
    examples = [
        Tasks(
            answer=Continuation(ids=one[0], start=one[1]),
            rationale=Continuation(ids=one[2], start=one[3]),
        )
        for one in SEQUENCES
    ]
    contexts = made.prepare(network, examples, Moment(number=0, seeds=(1, 2), repeat=0))
    shares = [
        made.share(network, example, context)
        for example, context in zip(examples, contexts, strict=True)
    ]
    total = sum(one.loss for one in shares)
    total.backward()
    table = network.table.detach().double().numpy()
    assert total.item() == pytest.approx(loss_by_hand(table, weight), rel=1e-6)
    told = [sum(one.figures[at].item() for one in shares) for at in range(2)]
    assert told[0] + weight * told[1] == pytest.approx(total.item(), rel=1e-6)
    for place in np.ndindex(table.shape):
        nudge = np.zeros_like(table)
        nudge[place] = 1e-6
        up, down = (loss_by_hand(table + sign * nudge, weight) for sign in (1, -1))
        assert network.table.grad[place].item() == pytest.approx((up - down) / 2e-6, abs=1e-6)


def test_without_a_weight_it_is_fine_tuning_on_the_answers(tmp_path, model, train):
    """DIST-71: byte for byte, where the prompt has no words of its own."""
    plain = write_rows(tmp_path / "plain", "train.jsonl", [row[:2] for row in ROWS])
    ours = trained(tmp_path, model, train, rationale_weight="0", prefixes="rationale")
    theirs = trained(tmp_path, model, plain, step="sft")
    assert files_of(ours.folder("adapter")) == files_of(theirs.folder("adapter"))


def test_either_task_is_learnt_and_the_bytes_are_the_same_in_parts(tmp_path, model, train):
    """DIST-70, ALG-3."""
    whole = trained(tmp_path / "a", model, train, batch_size=4)
    split = trained(tmp_path / "b", model, train, batch_size=2, gradient_accumulation=2)
    for output in ("adapter", "metrics"):
        assert files_of(whole.folder(output)) == files_of(split.folder(output)), output
    table = (whole.folder("metrics") / "metrics.csv").read_text().splitlines()
    columns = table[0].split(",")
    for name in ("loss", "answer_nll", "rationale_nll"):
        first, *_, last = (float(line.split(",")[columns.index(name)]) for line in table[1:])
        assert last < first, name


@pytest.mark.parametrize(("prefixes", "words"), [("both", "[label] "), ("rationale", "")])
def test_the_last_turn_says_which_task_is_meant(prefixes, words, tmp_path, model):
    """DIST-72: and the turns before it stay."""
    from kolm_build.runtime.loading import load
    from kolm_build.steps._sequences import Tokeniser
    from kolm_build.steps.objectives.rationale import TAKE

    system = {"content": "Be brief.", "role": "system"}
    lines = [reasoned(1, "why?", "so", "as it is", system)]
    file = write_lines(tmp_path / "rows", "train.jsonl", lines) / "train.jsonl"
    loaded = load(model, dtype=torch.float32)
    given = SimpleNamespace(tokens=Tokeniser(model=loaded, max_length=256), rows=lambda: file)
    (found,) = TAKE(Fields({"prefixes": prefixes})).examples(given)
    for sequence, begin, said in (
        (found.answer, words, "so"),
        (found.rationale, "[rationale] ", "as it is"),
    ):
        turns = [system, {"content": f"{begin}why?", "role": "user"}]
        assert list(sequence.ids[: sequence.start]) == loaded.chat.prompt_ids(turns)
        assert list(sequence.ids[sequence.start :]) == list(loaded.chat.answer_ids(said))


@pytest.mark.parametrize(
    ("change", "where", "reason"),
    [
        ({"rationale": " "}, "row 2.rationale", "an empty text"),
        ({"answer": ""}, "row 2.answer", "an empty text"),
        ({"messages": []}, "row 2.messages", "no turns"),
        ({"rationale": None}, "row 2.rationale", "wrong type"),
        ({"why": "a"}, "row 2.why", "unknown key"),
        ({"rationale": "word " * 300}, "row 2 (sha256:", "a row has too many tokens"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(change, where, reason, tmp_path, model):
    """DATA-16, DIST-72."""
    lines = [reasoned(at, *row) for at, row in enumerate(ROWS, 1)]
    lines[1] = strict_json.dumps({**strict_json.loads(lines[1]), **change})
    rows = write_lines(tmp_path / "bad", "train.jsonl", lines)
    refusal = trained(tmp_path, model, rows).refusal()
    assert reason in refusal["reason"]
    assert refusal["where"].startswith(where)
    assert refusal["file"] == "train.jsonl"
