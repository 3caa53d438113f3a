"""``dapo``: decoupled clip and dynamic sampling (arXiv:2503.14476, equation 8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

import torch

from kolm_build.core.fields import Fields
from kolm_build.steps._bounds import count
from kolm_build.steps._rewards import Judge, judged
from kolm_build.steps._rollouts import Completion, PromptExample
from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._policy import PolicyObjective, PolicyParams, Rollout, scalars
from kolm_build.steps.objectives.grpo import standardised


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class Dapo(PolicyObjective):
    """GRPO with a higher upper clip, a mean over tokens, and no group without differences.

    Args:
        params: What all these objectives have.
        resamples: How often a group whose rewards are all equal is drawn anew (equation 11's
            condition); one that stays so has no part in the step.
        overlong_tokens: In this many tokens before `max_new_tokens` the reward falls by up to 1
            (equation 13); 0 for never.
    """

    def __init__(self, params: PolicyParams, resamples: int, overlong_tokens: int) -> None:
        super().__init__(params)
        self._resamples = resamples
        self._overlong = overlong_tokens

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        return cls(
            PolicyParams.take(fields, epsilon_high="0.28"),
            count(fields, "resamples", 2, least=0),
            count(fields, "overlong_tokens", 0, least=0),
        )

    def collect(
        self, network: Any, examples: Sequence[PromptExample], seeds: Sequence[int], judge: Judge
    ) -> list[Rollout]:
        """Groups with differences, as far as drawing anew finds them."""
        rollouts = [self._punished(one) for one in super().collect(network, examples, seeds, judge)]
        for attempt in range(1, self._resamples + 1):
            first = attempt * self.sampling.generations
            flat = [at for at, one in enumerate(rollouts) if is_flat(one)]
            drawn = self.sampler.draw(
                network, [examples[at].ids for at in flat], [seeds[at] for at in flat], first
            )
            for at, said in zip(flat, drawn, strict=True):
                rewards = judged(judge, examples[at], said)
                rollouts[at] = self._punished(
                    replace(rollouts[at], completions=tuple(said), rewards=rewards)
                )
        return rollouts

    def advantages(self, rollouts: Sequence[Rollout]) -> Sequence[Sequence[torch.Tensor]]:
        """Equation 9: GRPO's."""
        return [scalars(standardised(one.rewards)) for one in rollouts]

    def scales(self, rollouts: Sequence[Rollout]) -> Sequence[Sequence[float]]:
        """The mean over all tokens of the groups that have differences."""
        total = sum(sum(one.tokens) for one in rollouts if not is_flat(one))
        return [[0.0 if is_flat(one) else 1.0 / total] * len(one.completions) for one in rollouts]

    def _punished(self, rollout: Rollout) -> Rollout:
        return replace(
            rollout,
            rewards=tuple(
                reward + self._punishment(one)
                for reward, one in zip(rollout.rewards, rollout.completions, strict=True)
            ),
        )

    def _punishment(self, completion: Completion) -> float:
        """Equation 13; nothing is longer than `max_new_tokens`."""
        if self._overlong == 0:
            return 0.0
        start = self.sampling.max_new_tokens - self._overlong
        return -max(0, completion.sequence.tokens - start) / self._overlong


def is_flat(rollout: Rollout) -> bool:
    """Whether all rewards are equal."""
    return len(set(rollout.rewards)) == 1


TAKE: Take = Dapo.take
