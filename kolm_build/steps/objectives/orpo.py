"""``orpo``: odds ratio preference optimisation (arXiv:2403.07691, equations 6 and 7)."""

from __future__ import annotations

from typing import Self

import torch
from torch.nn.functional import logsigmoid

from kolm_build.core.fields import Fields
from kolm_build.steps._bounds import decimal
from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._pairs import PairExample, PairObjective, Side

LOG_HALF = -0.6931471805599453
"""Where the two ways of writing log(1 - exp(x)) lose the fewest bits."""


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class Orpo(PairObjective):
    """The chosen answers' NLL + lambda (-log s(log odds of the chosen - that of the rejected)).

    An answer's odds are those of its mean log-probability. With `odds_weight` 0 this is `sft` on
    the chosen answers.

    Args:
        odds_weight: The factor of the odds ratio, lambda in the paper.
    """

    uses_reference = False
    nll_weight = 1.0

    def __init__(self, odds_weight: float) -> None:
        self.odds_weight = odds_weight

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        return cls(decimal(fields, "odds_weight", "0.1", least=0.0, most=1000.0))

    def loss(self, chosen: Side, rejected: Side, example: PairExample) -> torch.Tensor:
        """Equation 7, one row."""
        del example
        difference = log_odds(chosen.mean_log_p) - log_odds(rejected.mean_log_p)
        return -self.odds_weight * logsigmoid(difference)


def log_odds(log_p: torch.Tensor) -> torch.Tensor:
    """The log odds, log (p / (1 - p)), of log p (equation 4)."""
    near_one = torch.log(-torch.expm1(log_p))
    return log_p - torch.where(log_p < LOG_HALF, torch.log1p(-torch.exp(log_p)), near_one)


TAKE: Take = Orpo.take
