"""``kd-reverse``: distillation with the reverse divergence (arXiv:2306.08543, equation 1)."""

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


class KdReverse(TeachingObjective):
    """KL(student || teacher), which seeks what the teacher says most."""

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        return cls(take_hard_weight(fields), take_temperature(fields))

    def distance(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """Reverse."""
        return divergence(student, teacher)


TAKE: Take = KdReverse.take
