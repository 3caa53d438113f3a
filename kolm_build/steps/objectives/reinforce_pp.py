"""``reinforce-pp``: REINFORCE++ (arXiv:2501.03262, equations 8 to 10)."""

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
    deviation,
    log_ratio,
    mean,
)


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class ReinforcePlusPlus(PolicyObjective):
    """PPO's clipped ratio without a critic; advantages are standard scores over a whole step."""

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        made = cls(PolicyParams.take(fields, generations=1, least=1, beta="0.01"))
        made.needs_old = made.params.beta > 0.0
        return made

    def advantages(self, rollouts: Sequence[Rollout]) -> Sequence[Sequence[torch.Tensor]]:
        """Equation 8 for every token, equation 10 over all tokens of the step."""
        raw = [
            [to_go(one, at, self.params.beta) for at in range(len(one.completions))]
            for one in rollouts
        ]
        return normalised(raw)

    def token_losses(self, policy: torch.Tensor, part: Part) -> torch.Tensor:
        """The clipped ratio; the divergence is in the advantage."""
        return clipped(log_ratio(policy, part), part.advantage, self.params.low, self.params.high)


def to_go(rollout: Rollout, at: int, beta: float) -> list[float]:
    """For every token r - beta (log (p / p_ref) of it and all after it), equations 8 and 9."""
    tokens = rollout.tokens[at]
    if not rollout.reference:
        return [rollout.rewards[at]] * tokens
    left, found = 0.0, []
    for one in reversed((rollout.old[at] - rollout.reference[at]).tolist()):
        left += one
        found.append(rollout.rewards[at] - beta * left)
    return found[::-1]


def normalised(raw: Sequence[Sequence[Sequence[float]]]) -> list[list[torch.Tensor]]:
    """(A - mean) / (std + 1e-8) over every token of the step, std over their number."""
    flat = [one for row in raw for tokens in row for one in tokens]
    middle, spread = mean(flat), deviation(flat, less=0)
    return [
        [torch.tensor([(one - middle) / (spread + 1e-8) for one in tokens]) for tokens in row]
        for row in raw
    ]


TAKE: Take = ReinforcePlusPlus.take
