"""``cispo``: clipped importance weights (arXiv:2506.13585, equations 4 and 5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch

from kolm_build.core.fields import Fields
from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._policy import (
    Part,
    PolicyObjective,
    PolicyParams,
    Rollout,
    log_ratio,
    penalised,
    per_token,
    scalars,
)
from kolm_build.steps.objectives.grpo import standardised


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class Cispo(PolicyObjective):
    """-clip(r) A log p, with no gradient through the clipped ratio: no token is left out."""

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe; the lower clip is none unless it is given."""
        return cls(PolicyParams.take(fields, epsilon="1", epsilon_high="4"))

    def advantages(self, rollouts: Sequence[Rollout]) -> Sequence[Sequence[torch.Tensor]]:
        """GRPO's."""
        return [scalars(standardised(one.rewards)) for one in rollouts]

    def scales(self, rollouts: Sequence[Rollout]) -> Sequence[Sequence[float]]:
        """The mean over all tokens."""
        return per_token(rollouts)

    def token_losses(self, policy: torch.Tensor, part: Part) -> torch.Tensor:
        """Equation 4."""
        ratio = log_ratio(policy.detach(), part).exp()
        weight = ratio.clamp(1.0 - self.params.low, 1.0 + self.params.high)
        return penalised(-weight * part.advantage * policy, policy, part, self.params.beta)


TAKE: Take = Cispo.take
