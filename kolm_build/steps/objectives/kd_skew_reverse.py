"""``kd-skew-reverse``: distillation, skew reverse divergence (arXiv:2402.03898, equation 6)."""

from __future__ import annotations

import torch

from kolm_build.steps._sequences import mixture
from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._teaching import SkewObjective, divergence


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class KdSkewReverse(SkewObjective):
    """KL(student || alpha student + (1 - alpha) teacher); the reverse divergence at alpha 0."""

    def distance(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """Equation 6."""
        return divergence(student, mixture(student, teacher, self.alpha))


TAKE: Take = KdSkewReverse.take
