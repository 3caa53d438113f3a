"""``kd-jeffreys``: distillation with both divergences (H. Jeffreys, 1946; arXiv:2307.15190)."""

from __future__ import annotations

from typing import Self

import torch

from kolm_build.core.fields import Fields
from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._teaching import (
    TeachingObjective,
    divergence,
    take_hard_weight,
    take_temperature,
)


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class KdJeffreys(TeachingObjective):
    """KL(teacher || student) + KL(student || teacher)."""

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        return cls(take_hard_weight(fields), take_temperature(fields))

    def distance(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """Symmetric."""
        return divergence(teacher, student) + divergence(student, teacher)


TAKE: Take = KdJeffreys.take
