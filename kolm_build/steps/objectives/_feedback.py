"""What objectives over single answers with a verdict share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kolm_build.steps._conversations import Feedback, read_feedback
from kolm_build.steps._given import Given
from kolm_build.steps._objective import Moment, Objective, Share
from kolm_build.steps._sequences import Continuation, Tokeniser, log_probability


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackExample:
    """An answer and whether it is good, as token ids.

    Attributes:
        number: The row's number, from 0.
        sequence: Prompt and answer.
        good: Whether the answer is wanted.
        weight: What the row counts.
    """

    number: int
    sequence: Continuation
    good: bool
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """What a row knows of its step.

    Attributes:
        rows: Rows of the step.
        point: What a row's log ratio, times beta where the objective says so, is measured from.
    """

    rows: int
    point: torch.Tensor


class FeedbackObjective(Objective[FeedbackExample, Level]):
    """The mean over a step's rows of a loss of one answer's log ratio and verdict.

    The reference is the model as the stage begins.
    """

    figures = ("ratio_good", "ratio_bad", "point")

    def examples(self, given: Given) -> Sequence[FeedbackExample]:
        """The answer of every row."""
        self._change = given.change
        rows = enumerate(read_feedback(given.rows()))
        return [_example(given.tokens, at, row) for at, row in rows]

    def columns(self, examples: Sequence[FeedbackExample]) -> Mapping[str, Sequence[Sequence[int]]]:
        """Token ids, labels and verdicts."""
        return {
            "good": [[int(one.good)] for one in examples],
            "input_ids": [list(one.sequence.ids) for one in examples],
            "labels": [one.sequence.labels for one in examples],
        }

    def start(self, network: Any, examples: Sequence[FeedbackExample]) -> None:
        """Note the reference's log-probabilities."""
        network.eval()
        with torch.no_grad():
            self._reference = [log_probability(network, one.sequence) for one in examples]

    def prepare(
        self, network: Any, examples: Sequence[FeedbackExample], moment: Moment
    ) -> Sequence[Level]:
        """The point that ratios are measured from."""
        del moment
        level = Level(rows=len(examples), point=self.point(network, examples))
        return [level] * len(examples)

    def share(self, network: Any, example: FeedbackExample, context: Level) -> Share:
        """The row's part of the mean."""
        ratio = self.ratio(network, example)
        loss = example.weight * self.loss(ratio, example, context.point) / context.rows
        told, nothing = ratio.detach(), torch.zeros(())
        sides = (told, nothing) if example.good else (nothing, told)
        return Share(loss=loss, figures=(*sides, context.point))

    def ratio(self, network: Any, example: FeedbackExample) -> torch.Tensor:
        """Log (p / p_ref) of the answer, shape ()."""
        return log_probability(network, example.sequence) - self._reference[example.number]

    def point(self, network: Any, examples: Sequence[FeedbackExample]) -> torch.Tensor:
        """What the step's ratios are measured from, shape ()."""
        del network, examples
        return torch.zeros(())

    @abstractmethod
    def loss(
        self, ratio: torch.Tensor, example: FeedbackExample, point: torch.Tensor
    ) -> torch.Tensor:
        """The loss of one row, shape ()."""


def _example(tokens: Tokeniser, at: int, row: Feedback) -> FeedbackExample:
    return FeedbackExample(
        number=at,
        sequence=tokens.sequence(row.messages, row.answer, f"row {at + 1} ({row.id})"),
        good=row.good,
        weight=float(row.weight),
    )
