"""``rdpo``: robust direct preference optimisation (arXiv:2403.00409, equation 12)."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid

from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._pairs import PairExample, Side, SmoothedObjective


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class Rdpo(SmoothedObjective):
    """((1 - e) DPO's loss - e DPO's loss with the answers swapped) / (1 - 2 e): unbiased."""

    def loss(self, chosen: Side, rejected: Side, example: PairExample) -> torch.Tensor:
        """Equation 12, one row."""
        del example
        scaled = self.beta * (chosen.ratio - rejected.ratio)
        kept, swapped = -logsigmoid(scaled), -logsigmoid(-scaled)
        noise = self.label_smoothing
        return ((1 - noise) * kept - noise * swapped) / (1 - 2 * noise)


TAKE: Take = Rdpo.take
