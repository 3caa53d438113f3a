"""``dr-grpo``: GRPO without its biases (arXiv:2503.20783, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch

from kolm_build.core.fields import Fields
from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._policy import (
    PolicyObjective,
    PolicyParams,
    Rollout,
    mean,
    scalars,
)


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class DrGrpo(PolicyObjective):
    """GRPO whose advantage is not divided by the deviation, nor a loss by its own length."""

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        return cls(PolicyParams.take(fields))

    def advantages(self, rollouts: Sequence[Rollout]) -> Sequence[Sequence[torch.Tensor]]:
        """R - mean over the completions of a prompt."""
        return [scalars(centred(one.rewards)) for one in rollouts]

    def scales(self, rollouts: Sequence[Rollout]) -> Sequence[Sequence[float]]:
        """One length for all completions: the most tokens that one may have."""
        count = sum(len(one.completions) for one in rollouts)
        scale = 1.0 / (count * self.sampling.max_new_tokens)
        return [[scale] * len(one.completions) for one in rollouts]


def centred(rewards: Sequence[float]) -> list[float]:
    """Each reward less the mean."""
    middle = mean(rewards)
    return [one - middle for one in rewards]


TAKE: Take = DrGrpo.take
