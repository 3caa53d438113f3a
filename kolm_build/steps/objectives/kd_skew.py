"""``kd-skew``: distillation with the skew forward divergence (arXiv:2402.03898, equation 5)."""

from __future__ import annotations

from typing import Self

import torch

from kolm_build.core.fields import Fields
from kolm_build.steps._bounds import decimal
from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._teaching import (
    TeachingObjective,
    divergence,
    mixture,
    take_hard_weight,
    take_temperature,
)


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class KdSkew(TeachingObjective):
    """KL(teacher || alpha teacher + (1 - alpha) student).

    Args:
        hard_weight: The share of the likelihood of the answers.
        temperature: Of both models.
        alpha: The skew; at 0 it is the forward divergence.
    """

    def __init__(self, hard_weight: float, temperature: float, alpha: float) -> None:
        super().__init__(hard_weight, temperature)
        self.alpha = alpha

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        return cls(
            take_hard_weight(fields),
            take_temperature(fields),
            decimal(fields, "alpha", "0.1", least=0.0, most=0.99),
        )

    def distance(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """Equation 5."""
        return divergence(teacher, mixture(teacher, student, self.alpha))


TAKE: Take = KdSkew.take
