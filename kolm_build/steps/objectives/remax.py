"""``remax``: REINFORCE with the greedy answer as its baseline (arXiv:2310.10505, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch

from kolm_build.core.fields import Fields
from kolm_build.steps._rewards import Judge, judged
from kolm_build.steps._rollouts import PromptExample
from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._policy import (
    Part,
    PolicyObjective,
    PolicyParams,
    Rollout,
    scalars,
    summed,
)
from kolm_build.steps.objectives.rloo import penalised_rewards


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class ReMax(PolicyObjective):
    """-(r(y) - r(greedy y)) log p(y), the mean over completions."""

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe; each completion is used once."""
        made = cls(PolicyParams.once(fields, generations=1, beta="0.05"))
        made.needs_old = made.params.beta > 0.0
        return made

    def collect(
        self, network: Any, examples: Sequence[PromptExample], seeds: Sequence[int], judge: Judge
    ) -> list[Rollout]:
        """Completions, and what the greedy one of each row is worth."""
        rollouts = super().collect(network, examples, seeds, judge)
        greedy = self.sampler.greedy(network, [one.ids for one in examples])
        self._baselines = [
            judged(judge, example, [one])[0] for example, one in zip(examples, greedy, strict=True)
        ]
        return rollouts

    def advantages(self, rollouts: Sequence[Rollout]) -> Sequence[Sequence[torch.Tensor]]:
        """Algorithm 1: R(y) - r(greedy y), R = r - beta log (p / p_ref)."""
        return [
            scalars([reward - baseline for reward in penalised_rewards(one, self.params.beta)])
            for one, baseline in zip(rollouts, self._baselines, strict=True)
        ]

    def scales(self, rollouts: Sequence[Rollout]) -> Sequence[Sequence[float]]:
        """The mean over completions."""
        return summed(rollouts)

    def token_losses(self, policy: torch.Tensor, part: Part) -> torch.Tensor:
        """The policy gradient, without a ratio."""
        return -part.advantage * policy


TAKE: Take = ReMax.take
