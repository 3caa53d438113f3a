"""``rpo``: DPO with the likelihood of the chosen answers (arXiv:2404.19733, equation 1)."""

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


class Rpo(PairObjective):
    """DPO's loss + alpha times the mean negative log-likelihood of the chosen answers' tokens.

    Args:
        beta: How close the policy is held to the reference.
        nll_weight: The factor of the likelihood, alpha in the paper.
    """

    def __init__(self, beta: float, nll_weight: float) -> None:
        self.beta = beta
        self.nll_weight = nll_weight

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        return cls(take_beta(fields), decimal(fields, "nll_weight", "1", least=0.0, most=1000.0))

    def loss(self, chosen: Side, rejected: Side, example: PairExample) -> torch.Tensor:
        """DPO's part of equation 1, one row."""
        del example
        return -logsigmoid(self.beta * (chosen.ratio - rejected.ratio))


TAKE: Take = Rpo.take
