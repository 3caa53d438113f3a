"""``slic``: sequence likelihood calibration (arXiv:2305.10425, equation 1)."""

from __future__ import annotations

from typing import Self

import torch

from kolm_build.core.fields import Fields
from kolm_build.steps._bounds import decimal
from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._pairs import PairExample, PairObjective, Side, take_beta


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class Slic(PairObjective):
    """max(0, delta - log p of the chosen + log p of the rejected) + lambda NLL of the chosen.

    Here `beta` is the margin delta.

    Args:
        beta: How close the policy is held to the reference.
        nll_weight: The factor of the negative log-likelihood, lambda in the paper.
    """

    uses_reference = False

    def __init__(self, beta: float, nll_weight: float) -> None:
        self.beta = beta
        self.nll_weight = nll_weight

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        return cls(
            take_beta(fields, "1"), decimal(fields, "nll_weight", "0.1", least=0.0, most=1000.0)
        )

    def loss(self, chosen: Side, rejected: Side, example: PairExample) -> torch.Tensor:
        """The calibration loss of equation 1, one row."""
        del example
        return torch.relu(self.beta - chosen.log_p + rejected.log_p)


TAKE: Take = Slic.take
