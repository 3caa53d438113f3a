"""``uld``: distillation across tokenizers (arXiv:2402.12030, equations 4 and 6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch.nn.functional import cross_entropy, pad

from kolm_build.core.fields import Fields
from kolm_build.steps._bounds import decimal
from kolm_build.steps._conversations import read_conversations
from kolm_build.steps._given import Given
from kolm_build.steps._objective import Moment, Objective, Share
from kolm_build.steps._sequences import Continuation, Tokeniser, answer_logits
from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._teaching import absolute, load_teacher


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Twice:
    """A row in the tokens of both models.

    Attributes:
        student: In the student's.
        teacher: In the teacher's.
    """

    student: Continuation
    teacher: Continuation


class Uld(Objective[Twice, int]):
    """The answers' NLL + weight times the distance of both models' sorted probabilities.

    The k-th likeliest token of one model meets the k-th likeliest of the other, whatever they
    spell; the t-th token of an answer meets the t-th, up to the shorter one's end.

    Args:
        distance_weight: The factor of the distance, lambda in the paper.
    """

    figures = ("distance", "nll")

    def __init__(self, distance_weight: float) -> None:
        self.distance_weight = distance_weight

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        return cls(decimal(fields, "distance_weight", "1.5", least=0.0, most=1000.0))

    def examples(self, given: Given) -> Sequence[Twice]:
        """Every row in the tokens of both models."""
        self.teacher = load_teacher(given, same_tokens=False)
        theirs = Tokeniser(model=self.teacher, max_length=self.teacher.window)
        made = []
        for at, row in enumerate(read_conversations(given.rows()), start=1):
            where = f"row {at} ({row.id})"
            made.append(
                Twice(
                    student=given.tokens.sequence(row.messages, row.answer, where),
                    teacher=theirs.sequence(row.messages, row.answer, where),
                )
            )
        return made

    def columns(self, examples: Sequence[Twice]) -> Mapping[str, Sequence[Sequence[int]]]:
        """Token ids of both, and labels."""
        return {
            "input_ids": [list(one.student.ids) for one in examples],
            "labels": [one.student.labels for one in examples],
            "teacher_ids": [list(one.teacher.ids) for one in examples],
        }

    def prepare(self, network: Any, examples: Sequence[Twice], moment: Moment) -> Sequence[int]:
        """The number of the step's answer tokens."""
        del network, moment
        return [sum(one.student.tokens for one in examples)] * len(examples)

    def share(self, network: Any, example: Twice, context: int) -> Share:
        """The row's part of the mean."""
        with torch.no_grad():
            taught, _ = answer_logits(self.teacher.network, example.teacher)
        logits, ids = answer_logits(network, example.student)
        distance = sorted_distance(logits, taught).sum() / context
        nll = cross_entropy(logits, ids, reduction="sum") / context
        loss = nll + self.distance_weight * distance
        return Share(loss=loss, figures=(distance.detach(), nll.detach()))


def sorted_distance(logits: torch.Tensor, taught: torch.Tensor) -> torch.Tensor:
    """The sum over k of |k-th likeliest of one - k-th of the other|, shape (shorter's tokens,)."""
    length, words = min(len(logits), len(taught)), max(logits.shape[1], taught.shape[1])
    one, other = (
        pad(
            torch.softmax(values[:length], dim=-1).sort(dim=-1, descending=True, stable=True)[0],
            (0, words - values.shape[1]),
        )
        for values in (logits, taught)
    )
    return absolute(one - other).sum(dim=-1)


TAKE: Take = Uld.take
