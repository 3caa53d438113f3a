"""``seq-kd``: distillation of sequences (arXiv:1606.07947, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from torch.nn.functional import cross_entropy

from kolm_build.core.fields import Fields
from kolm_build.steps._answers import AnswerMean
from kolm_build.steps._bounds import count
from kolm_build.steps._conversations import read_conversations, read_prompts
from kolm_build.steps._given import Given
from kolm_build.steps._objective import Share
from kolm_build.steps._sequences import Continuation, answer_logits
from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._teaching import TEACHER, load_teacher


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class SeqKd(AnswerMean):
    """The NLL of what the teacher answers to each prompt: always its likeliest next token.

    Without a teacher the rows are its recorded answers.

    Args:
        max_new_tokens: The longest answer of a teacher that is asked.
    """

    figures = ("teacher_tokens",)

    def __init__(self, max_new_tokens: int) -> None:
        self.max_new_tokens = max_new_tokens

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        return cls(count(fields, "max_new_tokens", 64))

    def examples(self, given: Given) -> Sequence[Continuation]:
        """Every prompt with the teacher's answer."""
        return self._asked(given) if TEACHER in given.request.inputs else _recorded(given)

    def _asked(self, given: Given) -> Sequence[Continuation]:
        teacher = load_teacher(given)
        rows = read_prompts(given.rows())
        given.events.log(f"the teacher answers {len(rows)} prompts")
        made = []
        for at, row in enumerate(rows, start=1):
            prompt = given.tokens.prompt(row.messages, f"row {at} ({row.id})")
            (answer,) = teacher.continuations([prompt], max_new_tokens=self.max_new_tokens)
            given.tokens.check(len(prompt) + len(answer), f"row {at} ({row.id})")
            made.append(Continuation(ids=(*prompt, *answer), start=len(prompt)))
        return made

    def share(self, network: Any, example: Continuation, context: int) -> Share:
        """The row's part of the mean."""
        logits, ids = answer_logits(network, example)
        loss = cross_entropy(logits, ids, reduction="sum") / context
        return Share(loss=loss, figures=(loss.new_tensor(float(example.tokens)),))


def _recorded(given: Given) -> Sequence[Continuation]:
    rows = enumerate(read_conversations(given.rows()), start=1)
    return [
        given.tokens.sequence(row.messages, row.answer, f"row {at} ({row.id})") for at, row in rows
    ]


TAKE: Take = SeqKd.take
