"""``grpo``: group relative policy optimisation (arXiv:2402.03300, equation 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch

from kolm_build.core.fields import Fields
from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._policy import (
    SMALL,
    PolicyObjective,
    PolicyParams,
    Rollout,
    deviation,
    mean,
    scalars,
)


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class Grpo(PolicyObjective):
    """The clipped ratio times the group's standard score, with k3 of the reference beside it.

    (1 / n) sum over completions of (1 / tokens) sum over tokens of
    -min(r A, clip(r, 1 - epsilon, 1 + epsilon) A) + beta k3.
    """

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        return cls(PolicyParams.take(fields, beta="0.04"))

    def advantages(self, rollouts: Sequence[Rollout]) -> Sequence[Sequence[torch.Tensor]]:
        """Section 4.1.2: (r - mean) / std over the completions of a prompt."""
        return [scalars(standardised(one.rewards)) for one in rollouts]


def standardised(rewards: Sequence[float]) -> list[float]:
    """(r - mean) / (std + 1e-4), std over n - 1 as TRL has it; 0 where all are equal."""
    middle, spread = mean(rewards), deviation(rewards)
    return [(one - middle) / (spread + SMALL) for one in rewards]


TAKE: Take = Grpo.take
