"""``rationale``: a student learns to answer and, beside it, to say why (arXiv:2305.02301).

"Distilling step-by-step": rows hold an answer and a rationale, mostly both a larger model's. They
are two tasks of one model, told apart by the words that the prompt begins with; to answer
it need not say why. The loss is that of the answers and a weight times that of the rationales
(equation 3, of equations 1 and 4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from torch.nn.functional import cross_entropy

from kolm_build.core.fields import Fields
from kolm_build.steps._bounds import choice, decimal
from kolm_build.steps._conversations import Messages, Rationale, read_rationales
from kolm_build.steps._given import Given
from kolm_build.steps._objective import Moment, Objective, Share
from kolm_build.steps._sequences import Continuation, Tokeniser, answer_logits
from kolm_build.steps._stage import Take, stage_main

ANSWER, WHY = "[label] ", "[rationale] "
"""What the prompt of either task begins with, as in the paper."""

BOTH = "both"
PREFIXES = (BOTH, "rationale")


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tasks:
    """A row as token ids.

    Attributes:
        answer: The prompt and the answer.
        rationale: The prompt of the other task and the rationale.
    """

    answer: Continuation
    rationale: Continuation


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """How many tokens with a loss an optimiser step has.

    Attributes:
        answers: In the answers.
        rationales: In the rationales.
    """

    answers: int
    rationales: int


class Rationales(Objective[Tasks, Tokens]):
    """The mean over answer tokens of -log p, and a weight times that over rationale tokens.

    Args:
        weight: Of the rationales, lambda; with 0 it is `sft` on the answers.
        prefixes: Whether the answer's prompt begins with words of its own too.
    """

    figures = ("answer_nll", "rationale_nll")

    def __init__(self, weight: float, prefixes: str) -> None:
        self.weight = weight
        self.prefixes = prefixes

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        return cls(
            decimal(fields, "rationale_weight", "1", least=0.0, most=1000.0),
            choice(fields, "prefixes", BOTH, PREFIXES),
        )

    def examples(self, given: Given) -> Sequence[Tasks]:
        """Both tasks of every row."""
        rows = enumerate(read_rationales(given.rows()), start=1)
        return [self._tasks(given.tokens, row, f"row {at} ({row.id})") for at, row in rows]

    def _tasks(self, tokens: Tokeniser, row: Rationale, where: str) -> Tasks:
        asked = begun(row.messages, ANSWER) if self.prefixes == BOTH else row.messages
        return Tasks(
            answer=tokens.sequence(asked, row.answer, f"{where}, answer"),
            rationale=tokens.sequence(
                begun(row.messages, WHY), row.rationale, f"{where}, rationale"
            ),
        )

    def columns(self, examples: Sequence[Tasks]) -> Mapping[str, Sequence[Sequence[int]]]:
        """Token ids of both tasks, and as labels those of answers and rationales."""
        return {
            "input_ids": [list(one.answer.ids) for one in examples],
            "labels": [one.answer.labels for one in examples],
            "rationale_ids": [list(one.rationale.ids) for one in examples],
            "rationale_labels": [one.rationale.labels for one in examples],
        }

    def prepare(self, network: Any, examples: Sequence[Tasks], moment: Moment) -> Sequence[Tokens]:
        """The numbers of tokens with a loss, for each row those of the whole step."""
        del network, moment
        counted = Tokens(
            answers=sum(one.answer.tokens for one in examples),
            rationales=sum(one.rationale.tokens for one in examples),
        )
        return [counted] * len(examples)

    def share(self, network: Any, example: Tasks, context: Tokens) -> Share:
        """The row's part of the sum of both means."""
        answer = _nll(network, example.answer) / context.answers
        why = _nll(network, example.rationale) / context.rationales
        return Share(loss=answer + self.weight * why, figures=(answer.detach(), why.detach()))


def _nll(network: Any, sequence: Continuation) -> Any:
    """-log p of all tokens after the prompt, shape ()."""
    logits, ids = answer_logits(network, sequence)
    return cross_entropy(logits, ids, reduction="sum")


def begun(messages: Messages, words: str) -> Messages:
    """`messages` with `words` at the beginning of the last one."""
    *before, last = messages
    return (*before, {**last, "content": words + last["content"]})


TAKE: Take = Rationales.take
