"""``kd-skew``: distillation with the skew forward divergence (arXiv:2402.03898, equation 5)."""

from __future__ import annotations

import torch

from kolm_build.steps._sequences import mixture
from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._teaching import SkewObjective, divergence


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class KdSkew(SkewObjective):
    """KL(teacher || alpha teacher + (1 - alpha) student); the forward divergence at alpha 0."""

    def distance(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """Equation 5."""
        return divergence(teacher, mixture(teacher, student, self.alpha))


TAKE: Take = KdSkew.take
