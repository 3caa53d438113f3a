"""What objectives share that compare two answers which a policy gave itself (RL-60 to RL-64)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import logsigmoid

from kolm_build.steps._objective import Moment, Share
from kolm_build.steps._rewards import RewardParams
from kolm_build.steps._rollouts import Completion, PromptExample, Sampling
from kolm_build.steps._sequences import Continuation, log_probability
from kolm_build.steps.objectives._policy import PromptObjective


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of two answers.

    Attributes:
        sequence: The prompt and its tokens.
        reference: Its log p under the reference, shape ().
        reward: What it is worth.
    """

    sequence: Continuation
    reference: torch.Tensor
    reward: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Duel:
    """Two answers to the prompt of a row.

    Attributes:
        first: The one that was drawn first.
        second: The other.
        rows: Rows of the step.
    """

    first: Side
    second: Side
    rows: int

    @property
    def is_tie(self) -> bool:
        """Whether neither is better."""
        return self.first.reward == self.second.reward

    @property
    def chosen(self) -> Side:
        """The better one."""
        return self.first if self.first.reward >= self.second.reward else self.second

    @property
    def rejected(self) -> Side:
        """The other one."""
        return self.second if self.first.reward >= self.second.reward else self.first


class DuelObjective(PromptObjective):
    """A mean over a step's rows of a loss of two answers to each prompt.

    Args:
        sampling: How answers are drawn.
        reward: What they are worth; None for an objective that judges itself.
        beta: How far the policy may go from the reference: the smaller, the farther.
        iterations: Optimiser steps that are made with the same answers.
    """

    figures = ("reward", "margin", "accuracy", "ties")
    needs_reference = True

    def __init__(
        self, sampling: Sampling, reward: RewardParams | None, *, beta: float, iterations: int
    ) -> None:
        super().__init__(sampling, reward)
        self.beta = beta
        self.repeats = iterations

    @abstractmethod
    def answers(
        self, network: Any, examples: Sequence[PromptExample], seeds: Sequence[int]
    ) -> list[list[Completion]]:
        """Two or more answers to each prompt."""

    @abstractmethod
    def rewards(
        self,
        network: Any,
        examples: Sequence[PromptExample],
        answers: Sequence[Sequence[Completion]],
    ) -> list[Sequence[float]]:
        """What they are worth."""

    def prepare(
        self, network: Any, examples: Sequence[PromptExample], moment: Moment
    ) -> Sequence[Duel]:
        """Draw and judge; the same again while the answers are used again."""
        if moment.repeat == 0:
            said = self.answers(network, examples, moment.seeds)
            self.note(said)
            found = self.rewards(network, examples, said)
            self._duels = [
                self._duel(network, *two_of(*one), rows=len(examples))
                for one in zip(said, found, strict=True)
            ]
        return self._duels

    def _duel(
        self,
        network: Any,
        first: tuple[Completion, float],
        second: tuple[Completion, float],
        *,
        rows: int,
    ) -> Duel:
        with self.given.change.reference(network):
            sides = [
                Side(
                    sequence=one.sequence,
                    reference=log_probability(network, one.sequence),
                    reward=reward,
                )
                for one, reward in (first, second)
            ]
        return Duel(first=sides[0], second=sides[1], rows=rows)

    def share(self, network: Any, example: PromptExample, context: Duel) -> Share:
        """The row's part of the mean."""
        del example
        chosen = log_probability(network, context.chosen.sequence)
        rejected = log_probability(network, context.rejected.sequence)
        margin = (chosen - context.chosen.reference) - (rejected - context.rejected.reference)
        loss = preference_loss(margin, self.beta, is_tie=context.is_tie) + self.bonus(
            chosen if context.chosen is context.second else rejected
        )
        apart = margin.detach()
        return Share(
            loss=loss / context.rows,
            figures=(
                torch.tensor((context.first.reward + context.second.reward) / 2.0),
                apart,
                (apart > 0).float(),
                torch.tensor(float(context.is_tie)),
            ),
        )

    def bonus(self, second: torch.Tensor) -> torch.Tensor:
        """What is added to the loss, shape (), of `second` = log p of the second answer."""
        return torch.zeros_like(second)


def two_of(
    said: Sequence[Completion], rewards: Sequence[float]
) -> tuple[tuple[Completion, float], tuple[Completion, float]]:
    """The best and the worst answer where there are more than two, in the order they came."""
    best = max(range(len(said)), key=lambda at: (rewards[at], -at))
    worst = min(range(len(said)), key=lambda at: (rewards[at], at))
    if best == worst:  # all are worth the same
        best, worst = 0, 1
    first, second = sorted((best, worst))
    return (said[first], rewards[first]), (said[second], rewards[second])


def preference_loss(margin: torch.Tensor, beta: float, *, is_tie: bool) -> torch.Tensor:
    """-log sigmoid(beta margin); a tie says nothing, so it has no gradient and the loss 0."""
    return 0.0 * margin if is_tie else -logsigmoid(beta * margin)
