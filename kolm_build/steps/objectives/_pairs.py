"""What objectives over pairs of answers share: rows, log-probabilities, the reference's."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kolm_build.steps._conversations import read_pairs
from kolm_build.steps._objective import Moment, Objective, Share
from kolm_build.steps._sequences import Continuation, log_probability
from kolm_build.steps._stage import Given


@dataclass(frozen=True, slots=True, kw_only=True)
class PairExample:
    """Two answers to one prompt, as token ids.

    Attributes:
        number: The row's number, from 0.
        chosen: The prompt and the answer that was preferred.
        rejected: The prompt and the other answer.
    """

    number: int
    chosen: Continuation
    rejected: Continuation


@dataclass(frozen=True, slots=True, kw_only=True)
class Both:
    """A value for each answer of a pair, both shape ()."""

    chosen: torch.Tensor
    rejected: torch.Tensor


class PairObjective(Objective[PairExample, int]):
    """The mean over a step's rows of a loss of log-probabilities of the two answers.

    The reference is the model as the stage begins, and its log-probabilities are computed once,
    before the first step; an objective without a reference says so.
    """

    figures = ("margin", "accuracy")
    uses_reference = True

    def examples(self, given: Given) -> Sequence[PairExample]:
        """Both answers of every row."""
        rows = enumerate(read_pairs(given.rows()))
        return [
            PairExample(
                number=at,
                chosen=given.tokens.sequence(row.messages, row.chosen, f"row {at + 1} ({row.id})"),
                rejected=given.tokens.sequence(
                    row.messages, row.rejected, f"row {at + 1} ({row.id})"
                ),
            )
            for at, row in rows
        ]

    def columns(self, examples: Sequence[PairExample]) -> Mapping[str, Sequence[Sequence[int]]]:
        """Token ids and labels of both answers."""
        return {
            "chosen_ids": [list(one.chosen.ids) for one in examples],
            "chosen_labels": [one.chosen.labels for one in examples],
            "rejected_ids": [list(one.rejected.ids) for one in examples],
            "rejected_labels": [one.rejected.labels for one in examples],
        }

    def start(self, network: Any, examples: Sequence[PairExample]) -> None:
        """Note the reference's log-probabilities."""
        network.eval()
        with torch.no_grad():
            self._reference = [
                Both(
                    chosen=log_probability(network, one.chosen),
                    rejected=log_probability(network, one.rejected),
                )
                for one in (examples if self.uses_reference else ())
            ]

    def prepare(
        self, network: Any, examples: Sequence[PairExample], moment: Moment
    ) -> Sequence[int]:
        """The number of rows of the step."""
        del network, moment
        return [len(examples)] * len(examples)

    def share(self, network: Any, example: PairExample, context: int) -> Share:
        """The row's part of the mean."""
        policy = Both(
            chosen=log_probability(network, example.chosen),
            rejected=log_probability(network, example.rejected),
        )
        ratios = self._ratios(policy, example)
        margin = ratios.chosen - ratios.rejected
        loss = self.loss(ratios, policy, example)
        return Share(loss=loss / context, figures=(margin, (margin > 0).float()))

    def _ratios(self, policy: Both, example: PairExample) -> Both:
        """Log (p / p_ref) of each answer; log p without a reference."""
        if not self.uses_reference:
            return policy
        reference = self._reference[example.number]
        return Both(
            chosen=policy.chosen - reference.chosen, rejected=policy.rejected - reference.rejected
        )

    @abstractmethod
    def loss(self, ratios: Both, policy: Both, example: PairExample) -> torch.Tensor:
        """The loss of one row, shape (), of `ratios` = log (p / p_ref) and `policy` = log p."""
