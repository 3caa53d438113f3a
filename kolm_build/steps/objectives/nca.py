"""``nca``: noise contrastive alignment (arXiv:2402.05369, equation 12, two answers)."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid

from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._pairs import BetaObjective, PairExample, Side


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class Nca(BetaObjective):
    """-log s(r_w) - log s(-r_w) / 2 - log s(-r_l) / 2 with r = beta log ratio."""

    def loss(self, chosen: Side, rejected: Side, example: PairExample) -> torch.Tensor:
        """One row, with the rewards of the pair being 1 and 0."""
        del example
        won, lost = self.beta * chosen.ratio, self.beta * rejected.ratio
        return -logsigmoid(won) - 0.5 * logsigmoid(-won) - 0.5 * logsigmoid(-lost)


TAKE: Take = Nca.take
