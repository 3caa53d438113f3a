"""``rso``: hinge loss on log ratios (arXiv:2309.06657, equation 11)."""

from __future__ import annotations

import torch

from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._pairs import BetaObjective, PairExample, Side


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class Rso(BetaObjective):
    """max(0, 1 - beta (log ratio of the chosen answer - log ratio of the rejected one))."""

    def loss(self, chosen: Side, rejected: Side, example: PairExample) -> torch.Tensor:
        """Equation 11, one row."""
        del example
        return torch.relu(1 - self.beta * (chosen.ratio - rejected.ratio))


TAKE: Take = Rso.take
