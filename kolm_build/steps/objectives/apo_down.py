"""``apo-down``: anchored preference optimisation, down (arXiv:2408.06266, equation 8)."""

from __future__ import annotations

import torch

from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._pairs import BetaObjective, PairExample, Side


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class ApoDown(BetaObjective):
    """s(beta log ratio of the chosen) + (1 - s(beta (difference of the log ratios)))."""

    def loss(self, chosen: Side, rejected: Side, example: PairExample) -> torch.Tensor:
        """Equation 8, one row."""
        del example
        won, lost = self.beta * chosen.ratio, self.beta * rejected.ratio
        return torch.sigmoid(won) + (1 - torch.sigmoid(won - lost))


TAKE: Take = ApoDown.take
