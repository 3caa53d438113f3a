"""``kd``: distillation of soft targets (arXiv:1503.02531, section 2)."""

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


class Kd(TeachingObjective):
    """The forward divergence KL(teacher || student), which covers all that the teacher may say."""

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        return cls(take_hard_weight(fields, "0.1"), take_temperature(fields, "2"))

    def distance(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """Forward: zero if and only if the two are equal."""
        return divergence(teacher, student)


TAKE: Take = Kd.take
