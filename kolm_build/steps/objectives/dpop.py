"""``dpop``: DPO-positive (arXiv:2402.13228, equation 3)."""

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


class Dpop(PairObjective):
    """DPO's loss with a penalty where the chosen answer becomes less likely.

    Args:
        beta: How close the policy is held to the reference.
        penalty: The factor of max(0, log (p_ref / p) of the chosen answer), lambda in the paper.
    """

    def __init__(self, beta: float, penalty: float) -> None:
        self.beta = beta
        self.penalty = penalty

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        return cls(take_beta(fields), decimal(fields, "penalty", "5", least=0.0, most=1000.0))

    def loss(self, chosen: Side, rejected: Side, example: PairExample) -> torch.Tensor:
        """Equation 3, one row."""
        del example
        lost = torch.relu(-chosen.ratio)
        margin = chosen.ratio - rejected.ratio - self.penalty * lost
        return -logsigmoid(self.beta * margin)


TAKE: Take = Dpop.take
