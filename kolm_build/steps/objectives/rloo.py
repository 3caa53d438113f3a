"""``rloo``: REINFORCE leave-one-out (arXiv:2402.14740, section 2.3)."""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum
from typing import Self

import torch

from kolm_build.core.fields import Fields
from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._policy import (
    Part,
    PolicyObjective,
    PolicyParams,
    Rollout,
    clipped,
    k1_sums,
    log_ratio,
    scalars,
    summed,
)


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class Rloo(PolicyObjective):
    """A completion's reward less the mean of the prompt's others, for the whole completion.

    The divergence, log (p / p_ref) of the completion, is part of the reward. The ratio is that of
    whole completions, clipped, as TRL has it.
    """

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        made = cls(PolicyParams.take(fields, beta="0.05"))
        made.needs_old = made.params.beta > 0.0
        return made

    def advantages(self, rollouts: Sequence[Rollout]) -> Sequence[Sequence[torch.Tensor]]:
        """R_i - (1 / (k - 1)) sum over j != i of R_j, R = r - beta log (p / p_ref)."""
        return [scalars(left_out(penalised_rewards(one, self.params.beta))) for one in rollouts]

    def scales(self, rollouts: Sequence[Rollout]) -> Sequence[Sequence[float]]:
        """The mean over completions."""
        return summed(rollouts)

    def token_losses(self, policy: torch.Tensor, part: Part) -> torch.Tensor:
        """One loss for the completion."""
        ratio = log_ratio(policy, part).sum()
        return clipped(ratio, part.advantage, self.params.low, self.params.high)


def penalised_rewards(rollout: Rollout, beta: float) -> list[float]:
    """Rewards less beta log (p / p_ref) of the completions."""
    sums = k1_sums(rollout)
    return [reward - beta * one for reward, one in zip(rollout.rewards, sums, strict=True)]


def left_out(rewards: Sequence[float]) -> list[float]:
    """Each reward less the mean of the others."""
    total, others = fsum(rewards), len(rewards) - 1
    return [one - (total - one) / others for one in rewards]


TAKE: Take = Rloo.take
