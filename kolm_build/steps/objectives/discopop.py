"""``discopop``: discovered preference optimisation (arXiv:2406.08414, equation 5)."""

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


class DiscoPop(PairObjective):
    """The logistic and the exponential loss, mixed by s(beta difference / tau).

    Args:
        beta: How close the policy is held to the reference.
        tau: How sharply the mixture turns.
    """

    def __init__(self, beta: float, tau: float) -> None:
        self.beta = beta
        self.tau = tau

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        return cls(take_beta(fields), decimal(fields, "tau", "0.05", least=1e-6, most=100.0))

    def loss(self, chosen: Side, rejected: Side, example: PairExample) -> torch.Tensor:
        """Equation 5, one row."""
        del example
        scaled = self.beta * (chosen.ratio - rejected.ratio)
        part = torch.sigmoid(scaled / self.tau)
        return -logsigmoid(scaled) * (1 - part) + torch.exp(-scaled) * part


TAKE: Take = DiscoPop.take
