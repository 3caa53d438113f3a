"""``alphapo``: preference optimisation with a shaped reward (arXiv:2501.03884, equation 6)."""

from __future__ import annotations

from typing import Self

import torch
from torch.nn.functional import logsigmoid

from kolm_build.core.fields import Fields
from kolm_build.steps._bounds import decimal
from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._pairs import PairExample, PairObjective, Side, take_beta


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class AlphaPo(PairObjective):
    """SimPO with the reward (1 - p^(-alpha)) / alpha, p the geometric mean of the tokens' p.

    Args:
        beta: The scale of the rewards.
        gamma: The margin that is asked for.
        alpha: The shape; at 0 this is SimPO.
    """

    uses_reference = False

    def __init__(self, beta: float, gamma: float, alpha: float) -> None:
        self.beta = beta
        self.gamma = gamma
        self.alpha = alpha

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        return cls(
            take_beta(fields, "2"),
            decimal(fields, "gamma", "0.5", least=0.0, most=100.0),
            decimal(fields, "alpha", "0.25", least=0.0, most=10.0),
        )

    def loss(self, chosen: Side, rejected: Side, example: PairExample) -> torch.Tensor:
        """Equation 6, one row."""
        del example
        margin = self._reward(chosen.mean_log_p) - self._reward(rejected.mean_log_p)
        return -logsigmoid(self.beta * margin - self.gamma)

    def _reward(self, mean_log_p: torch.Tensor) -> torch.Tensor:
        if self.alpha == 0:
            return mean_log_p
        return -torch.expm1(-self.alpha * mean_log_p) / self.alpha


TAKE: Take = AlphaPo.take
