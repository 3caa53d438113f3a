"""What objectives share that learn the best of what a model said (RL-66, RL-67)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kolm_build.steps._objective import Moment, Share
from kolm_build.steps._rewards import Judge, RewardParams
from kolm_build.steps._rollouts import PromptExample, Sampling
from kolm_build.steps._sequences import Continuation, token_log_probabilities
from kolm_build.steps.objectives._policy import PromptObjective, mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What of a row is learned.

    Attributes:
        sequence: A prompt and what is to follow it; None for nothing.
        rewards: What all answers that were drawn are worth.
    """

    sequence: Continuation | None
    rewards: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A row in an optimiser step.

    Attributes:
        choice: What of it is learned.
        tokens: Tokens that are learned in the step, at least 1.
    """

    choice: Choice
    tokens: int


class KeptObjective(PromptObjective):
    """The mean negative log-likelihood of the tokens that were kept.

    Args:
        sampling: How answers are drawn.
        reward: What they are worth.
        iterations: Optimiser steps that are made with the same answers.
    """

    figures = ("reward", "kept")

    def __init__(self, sampling: Sampling, reward: RewardParams, iterations: int) -> None:
        super().__init__(sampling, reward)
        self.repeats = iterations

    @abstractmethod
    def choose(
        self, network: Any, examples: Sequence[PromptExample], seeds: Sequence[int], judge: Judge
    ) -> list[Choice]:
        """Draw, judge, and keep at most one answer for each row."""

    def prepare(
        self, network: Any, examples: Sequence[PromptExample], moment: Moment
    ) -> Sequence[Kept]:
        """Draw and choose; the same again while the answers are used again."""
        if moment.repeat == 0:
            with self.reward.judging() as judge:
                chosen = self.choose(network, examples, moment.seeds, judge)
            tokens = sum(one.sequence.tokens for one in chosen if one.sequence is not None)
            self._kept = [Kept(choice=one, tokens=max(tokens, 1)) for one in chosen]
        return self._kept

    def share(self, network: Any, example: PromptExample, context: Kept) -> Share:
        """The row's part of the mean; 0 where nothing is kept."""
        del example
        sequence = context.choice.sequence
        loss = torch.zeros((), requires_grad=True)
        if sequence is not None:
            loss = -token_log_probabilities(network, sequence).sum() / context.tokens
        kept = torch.tensor(float(sequence is not None))
        return Share(loss=loss, figures=(torch.tensor(mean(context.choice.rewards)), kept))
