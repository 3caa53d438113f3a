"""``ipo``: identity preference optimisation (arXiv:2310.12036, equation 17)."""

from __future__ import annotations

import torch

from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._pairs import BetaObjective, PairExample, Side


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class Ipo(BetaObjective):
    """(h - 1 / (2 beta))^2, h the difference of the log ratios over the numbers of tokens.

    The division by the number of tokens is not in the paper; its results were made with it.
    """

    def loss(self, chosen: Side, rejected: Side, example: PairExample) -> torch.Tensor:
        """Equation 17, one row."""
        del example
        return (chosen.mean_ratio - rejected.mean_ratio - 1 / (2 * self.beta)) ** 2


TAKE: Take = Ipo.take
