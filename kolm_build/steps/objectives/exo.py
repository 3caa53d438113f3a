"""``exo``: efficient exact optimisation of pairs (arXiv:2402.00856, equation 16)."""

from __future__ import annotations

from typing import Self

import torch
from torch.nn.functional import logsigmoid

from kolm_build.core.fields import Fields
from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._pairs import (
    PairExample,
    PairObjective,
    Side,
    take_beta,
    take_smoothing,
)


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class Exo(PairObjective):
    """KL(policy's preference || labels' preference), labels being 1 - e and e.

    Args:
        beta: How close the policy is held to the reference.
        label_smoothing: The share of pairs that are thought to be swapped.
    """

    def __init__(self, beta: float, label_smoothing: float) -> None:
        self.beta = beta
        self.label_smoothing = label_smoothing

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        return cls(take_beta(fields), take_smoothing(fields, "0.001"))

    def loss(self, chosen: Side, rejected: Side, example: PairExample) -> torch.Tensor:
        """Equation 16, one row."""
        del example
        scaled = self.beta * (chosen.ratio - rejected.ratio)
        noise = scaled.new_tensor(self.label_smoothing)
        won = torch.sigmoid(scaled) * (logsigmoid(scaled) - torch.log1p(-noise))
        lost = torch.sigmoid(-scaled) * (logsigmoid(-scaled) - torch.log(noise))
        return won + lost


TAKE: Take = Exo.take
