"""``lndpo``: length-normalised direct preference optimisation (arXiv:2411.15124, section 5.1.2)."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid

from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._pairs import BetaObjective, PairExample, Side


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class LnDpo(BetaObjective):
    """DPO of log ratios over the answers' numbers of tokens."""

    beta_default = "5"

    def loss(self, chosen: Side, rejected: Side, example: PairExample) -> torch.Tensor:
        """One row."""
        del example
        return -logsigmoid(self.beta * (chosen.mean_ratio - rejected.mean_ratio))


TAKE: Take = LnDpo.take
