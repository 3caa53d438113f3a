"""``f-dpo``: direct preference optimisation with another divergence (arXiv:2309.16240)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Self

import torch
from torch.nn.functional import logsigmoid

from kolm_build.core.fields import Fields
from kolm_build.steps._bounds import choice
from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._pairs import PairExample, PairObjective, Side, take_beta


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


def _forward(ratio: torch.Tensor) -> torch.Tensor:
    """f'(t) = 1 - 1 / t."""
    return 1 - torch.exp(-ratio)


def _jensen_shannon(ratio: torch.Tensor) -> torch.Tensor:
    """f'(t) = log(2 t / (1 + t))."""
    return torch.log(ratio.new_tensor(2.0)) + logsigmoid(ratio)


def _alpha_half(ratio: torch.Tensor) -> torch.Tensor:
    """f'(t) = (t^(a - 1) - 1) / (a - 1) with a = 1/2."""
    return 2 * (1 - torch.exp(-0.5 * ratio))


SCORES: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "forward-kl": _forward,
    "jensen-shannon": _jensen_shannon,
    "alpha-half": _alpha_half,
}
"""f' of each divergence, of log t = log (p / p_ref) (table 2)."""


class FDpo(PairObjective):
    """-log s(beta (f'(ratio of the chosen) - f'(ratio of the rejected))).

    Args:
        beta: How close the policy is held to the reference.
        divergence: One of `SCORES`; with the reverse divergence this is DPO.
    """

    def __init__(self, beta: float, divergence: str) -> None:
        self.beta = beta
        self.divergence = divergence

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        words = tuple(SCORES)
        return cls(take_beta(fields), choice(fields, "divergence", words[0], words))

    def loss(self, chosen: Side, rejected: Side, example: PairExample) -> torch.Tensor:
        """Equation 5, one row."""
        del example
        score = SCORES[self.divergence]
        return -logsigmoid(self.beta * (score(chosen.ratio) - score(rejected.ratio)))


TAKE: Take = FDpo.take
