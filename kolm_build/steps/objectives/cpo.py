"""``cpo``: contrastive preference optimisation (arXiv:2401.08417, equation 5)."""

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


class Cpo(PairObjective):
    """-log s(beta (log p of the chosen - log p of the rejected)) + the chosen answers' NLL.

    Args:
        beta: How close the policy is held to the reference.
        nll_weight: The factor of the negative log-likelihood, 1 in the paper.
    """

    uses_reference = False

    def __init__(self, beta: float, nll_weight: float) -> None:
        self.beta = beta
        self.nll_weight = nll_weight

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        return cls(take_beta(fields), decimal(fields, "nll_weight", "1", least=0.0, most=1000.0))

    def loss(self, chosen: Side, rejected: Side, example: PairExample) -> torch.Tensor:
        """L_prefer of equation 5, one row."""
        del example
        return -logsigmoid(self.beta * (chosen.log_p - rejected.log_p))


TAKE: Take = Cpo.take
