"""``apo-zero``: anchored preference optimisation, zero (arXiv:2408.06266, equation 7)."""

from __future__ import annotations

import torch

from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._pairs import BetaObjective, PairExample, Side


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class ApoZero(BetaObjective):
    """(1 - s(beta log ratio of the chosen)) + s(beta log ratio of the rejected)."""

    def loss(self, chosen: Side, rejected: Side, example: PairExample) -> torch.Tensor:
        """Equation 7, one row."""
        del example
        won, lost = self.beta * chosen.ratio, self.beta * rejected.ratio
        return (1 - torch.sigmoid(won)) + torch.sigmoid(lost)


TAKE: Take = ApoZero.take
