"""``sppo``: self-play preference optimisation, hard labels (arXiv:2405.00675, equation 4.7)."""

from __future__ import annotations

import torch

from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._pairs import BetaObjective, PairExample, Side


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class Sppo(BetaObjective):
    """(log ratio of the chosen - 1 / (2 beta))^2 + (that of the rejected + 1 / (2 beta))^2."""

    def loss(self, chosen: Side, rejected: Side, example: PairExample) -> torch.Tensor:
        """Equation 4.7 with the probabilities 1 and 0, one row."""
        del example
        half = 0.5 / self.beta
        return (chosen.ratio - half) ** 2 + (rejected.ratio + half) ** 2


TAKE: Take = Sppo.take
