"""``dpo``: direct preference optimisation (arXiv:2305.18290, equation 7)."""

from __future__ import annotations

from typing import Self

import torch
from torch.nn.functional import logsigmoid

from kolm_build.core.fields import Fields
from kolm_build.steps._bounds import decimal
from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._pairs import Both, PairExample, PairObjective


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class Dpo(PairObjective):
    """-log sigmoid(beta (log ratio of the chosen answer - log ratio of the rejected one)).

    Args:
        beta: How far the policy may go from the reference: the smaller, the farther.
    """

    def __init__(self, beta: float) -> None:
        self.beta = beta

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        return cls(decimal(fields, "beta", "0.1", least=0.0, most=100.0))

    def loss(self, ratios: Both, policy: Both, example: PairExample) -> torch.Tensor:
        """Equation 7, one row."""
        del policy, example
        return -logsigmoid(self.beta * (ratios.chosen - ratios.rejected))


TAKE: Take = Dpo.take
