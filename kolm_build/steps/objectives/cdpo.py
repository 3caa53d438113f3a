"""``cdpo``: conservative direct preference optimisation (E. Mitchell, 2023, equation 4)."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid

from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._pairs import PairExample, Side, SmoothedObjective


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class Cdpo(SmoothedObjective):
    """(1 - e) DPO's loss + e DPO's loss with the answers swapped."""

    def loss(self, chosen: Side, rejected: Side, example: PairExample) -> torch.Tensor:
        """One row."""
        del example
        scaled = self.beta * (chosen.ratio - rejected.ratio)
        kept, swapped = -logsigmoid(scaled), -logsigmoid(-scaled)
        return (1 - self.label_smoothing) * kept + self.label_smoothing * swapped


TAKE: Take = Cdpo.take
