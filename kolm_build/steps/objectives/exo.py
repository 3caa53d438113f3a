"""``exo``: efficient exact optimisation of pairs (arXiv:2402.00856, equation 16)."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid

from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._pairs import PairExample, Side, SmoothedObjective


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class Exo(SmoothedObjective):
    """KL(policy's preference || labels' preference), labels being 1 - e and e."""

    smoothing_default = "0.001"

    def loss(self, chosen: Side, rejected: Side, example: PairExample) -> torch.Tensor:
        """Equation 16, one row."""
        del example
        scaled = self.beta * (chosen.ratio - rejected.ratio)
        noise = scaled.new_tensor(self.label_smoothing)
        won = torch.sigmoid(scaled) * (logsigmoid(scaled) - torch.log1p(-noise))
        lost = torch.sigmoid(-scaled) * (logsigmoid(-scaled) - torch.log(noise))
        return won + lost


TAKE: Take = Exo.take
