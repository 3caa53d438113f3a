"""``dpo``: direct preference optimisation (arXiv:2305.18290, equation 7)."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid

from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._pairs import BetaObjective, PairExample, Side


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class Dpo(BetaObjective):
    """-log sigmoid(beta (log ratio of the chosen answer - log ratio of the rejected one))."""

    def loss(self, chosen: Side, rejected: Side, example: PairExample) -> torch.Tensor:
        """Equation 7, one row."""
        del example
        return -logsigmoid(self.beta * (chosen.ratio - rejected.ratio))


TAKE: Take = Dpo.take
