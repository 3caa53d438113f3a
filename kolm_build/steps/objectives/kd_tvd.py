"""``kd-tvd``: distillation with the total variation distance (arXiv:2307.15190, section 3.2)."""

from __future__ import annotations

from typing import Self

import torch

from kolm_build.core.fields import Fields
from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._teaching import (
    TeachingObjective,
    absolute,
    take_hard_weight,
    take_temperature,
)


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class KdTvd(TeachingObjective):
    """Half the sum over words of |teacher's probability - student's|."""

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        return cls(take_hard_weight(fields), take_temperature(fields))

    def distance(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """At most 1."""
        return 0.5 * absolute(torch.exp(teacher) - torch.exp(student)).sum(dim=-1)


TAKE: Take = KdTvd.take
