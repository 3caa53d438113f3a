"""``simpo``: simple preference optimisation (arXiv:2405.14734, equation 6)."""

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


class Simpo(PairObjective):
    """-log s(beta (mean log p of the chosen - mean log p of the rejected) - gamma).

    Args:
        beta: How close the policy is held to the reference.
        gamma: The margin that is asked for.
    """

    uses_reference = False

    def __init__(self, beta: float, gamma: float) -> None:
        self.beta = beta
        self.gamma = gamma

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        return cls(take_beta(fields, "2"), decimal(fields, "gamma", "0.5", least=0.0, most=100.0))

    def loss(self, chosen: Side, rejected: Side, example: PairExample) -> torch.Tensor:
        """Equation 6, one row."""
        del example
        margin = chosen.mean_log_p - rejected.mean_log_p
        return -logsigmoid(self.beta * margin - self.gamma)


TAKE: Take = Simpo.take
