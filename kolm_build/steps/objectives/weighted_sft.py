"""``weighted-sft``: sft whose rows count differently (Peters and Schaal 2007).

The weighted mean of the tokens' negative log-likelihoods: sum of w_i NLL over sum of w_i.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch

from kolm_build.core.fields import Fields
from kolm_build.errors import InvalidDataError
from kolm_build.steps._conversations import read_feedback
from kolm_build.steps._given import Given
from kolm_build.steps._objective import Moment, Objective, Share
from kolm_build.steps._sequences import Continuation, answer_logits
from kolm_build.steps._stage import Take, stage_main


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighted:
    """A row as token ids.

    Attributes:
        sequence: Prompt and answer.
        weight: What each of its tokens counts.
    """

    sequence: Continuation
    weight: float


class WeightedSft(Objective[Weighted, float]):
    """The weighted mean over a step's answer tokens of -log p."""

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """It has no parameters of its own."""
        del fields
        return cls()

    def examples(self, given: Given) -> Sequence[Weighted]:
        """Every row.

        Raises:
            InvalidDataError: A row's answer is marked as bad: there is nothing in it to learn.
        """
        made = []
        for number, row in enumerate(read_feedback(given.rows()), 1):
            where = f"row {number} ({row.id})"
            if not row.good:
                raise InvalidDataError(
                    "an answer that is not wanted",
                    file="train.jsonl",
                    where=where,
                    expected="good: true",
                    advice="Leave such rows out, or train with kto or bco, which learn from them.",
                )
            sequence = given.tokens.sequence(row.messages, row.answer, where)
            made.append(Weighted(sequence=sequence, weight=float(row.weight)))
        return made

    def columns(self, examples: Sequence[Weighted]) -> Mapping[str, Sequence[Sequence[int]]]:
        """Token ids, and as labels those of the answers."""
        return {
            "input_ids": [list(one.sequence.ids) for one in examples],
            "labels": [one.sequence.labels for one in examples],
        }

    def prepare(
        self, network: Any, examples: Sequence[Weighted], moment: Moment
    ) -> Sequence[float]:
        """The weights of all answer tokens of the step, added up in the order of the rows."""
        del network, moment
        total = 0.0
        for one in examples:
            total += one.weight * one.sequence.tokens
        return [total] * len(examples)

    def share(self, network: Any, example: Weighted, context: float) -> Share:
        """The row's part of the mean."""
        logits, ids = answer_logits(network, example.sequence)
        nll = torch.nn.functional.cross_entropy(logits, ids, reduction="sum")
        return Share(loss=nll * (example.weight / context))


TAKE: Take = WeightedSft.take
