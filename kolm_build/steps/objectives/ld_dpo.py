"""``ld-dpo``: length-desensitised direct preference optimisation (arXiv:2409.06411, equation 9)."""

from __future__ import annotations

from typing import Self

import torch
from torch.nn.functional import logsigmoid

from kolm_build.core.fields import Fields
from kolm_build.steps._bounds import decimal
from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._pairs import PairExample, PairObjective, Side, take_beta


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class LdDpo(PairObjective):
    """DPO in which the tokens beyond the shorter answer's length count alpha.

    Args:
        beta: How close the policy is held to the reference.
        alpha: What they count: 1 is DPO.
    """

    def __init__(self, beta: float, alpha: float) -> None:
        self.beta = beta
        self.alpha = alpha

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        return cls(take_beta(fields), decimal(fields, "alpha", "0.5", least=0.0, most=1.0))

    def loss(self, chosen: Side, rejected: Side, example: PairExample) -> torch.Tensor:
        """Equation 9, one row."""
        del example
        shared = min(len(chosen.policy), len(rejected.policy))
        margin = self._ratio(chosen, shared) - self._ratio(rejected, shared)
        return -logsigmoid(self.beta * margin)

    def _ratio(self, side: Side, shared: int) -> torch.Tensor:
        """The log ratio, tokens from `shared` on counted `alpha`."""
        ratios = side.policy - side.reference
        return ratios[:shared].sum() + self.alpha * ratios[shared:].sum()


TAKE: Take = LdDpo.take
