"""``kd-jsd``: distillation with the Jensen-Shannon divergence (arXiv:2306.13649, equation 1)."""

from __future__ import annotations

from typing import Self

import torch

from kolm_build.core.fields import Fields
from kolm_build.steps._bounds import decimal
from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._teaching import (
    TeachingObjective,
    jensen_shannon,
    take_hard_weight,
    take_temperature,
)


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class KdJsd(TeachingObjective):
    """beta KL(teacher || m) + (1 - beta) KL(student || m), m = beta teacher + (1 - beta) student.

    Args:
        hard_weight: The share of the likelihood of the answers.
        temperature: Of both models.
        beta: The teacher's weight; near 0 it is the forward divergence, near 1 the reverse.
    """

    def __init__(self, hard_weight: float, temperature: float, beta: float) -> None:
        super().__init__(hard_weight, temperature)
        self.beta = beta

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        return cls(
            take_hard_weight(fields),
            take_temperature(fields),
            decimal(fields, "beta", "0.5", least=1e-6, most=1 - 1e-6),
        )

    def distance(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """Equation 1."""
        return jensen_shannon(student, teacher, self.beta)


TAKE: Take = KdJsd.take
