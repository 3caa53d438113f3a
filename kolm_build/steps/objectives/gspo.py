"""``gspo``: group sequence policy optimisation (arXiv:2507.18071, equations 5 to 7)."""

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
    clipped,
    log_ratio,
    penalised,
    scalars,
)
from kolm_build.steps.objectives.grpo import standardised


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class Gspo(PolicyObjective):
    """GRPO with one ratio for a whole completion: (p / p_old)^(1 / tokens)."""

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe; the clips are those of section 5.1."""
        return cls(PolicyParams.take(fields, epsilon="0.0003", epsilon_high="0.0004"))

    def advantages(self, rollouts: Sequence[Rollout]) -> Sequence[Sequence[torch.Tensor]]:
        """Equation 6: GRPO's."""
        return [scalars(standardised(one.rewards)) for one in rollouts]

    def token_losses(self, policy: torch.Tensor, part: Part) -> torch.Tensor:
        """The sequence's loss at each of its tokens: their mean is that of equation 5."""
        ratio = log_ratio(policy, part).mean()
        loss = clipped(ratio, part.advantage, self.params.low, self.params.high)
        return penalised(loss.expand_as(policy), policy, part, self.params.beta)


TAKE: Take = Gspo.take
