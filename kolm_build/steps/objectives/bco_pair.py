"""``bco-pair``: binary classifier optimisation of pairs (arXiv:2404.04656, equation 8)."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid

from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._pairs import BetaObjective, PairExample, Side


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class BcoPair(BetaObjective):
    """-log s(beta log ratio of the chosen) - log s(-beta log ratio of the rejected)."""

    def loss(self, chosen: Side, rejected: Side, example: PairExample) -> torch.Tensor:
        """One row."""
        del example
        return -logsigmoid(self.beta * chosen.ratio) - logsigmoid(-self.beta * rejected.ratio)


TAKE: Take = BcoPair.take
