"""``apo-zero-unpaired``: anchored preference optimisation of single answers (arXiv:2408.06266)."""

from __future__ import annotations

from typing import Self

import torch

from kolm_build.core.fields import Fields
from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._feedback import FeedbackExample, FeedbackObjective
from kolm_build.steps.objectives._pairs import take_beta


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class ApoZeroUnpaired(FeedbackObjective):
    """1 - s(beta ratio) of a good answer, s(beta ratio) of a bad one.

    Args:
        beta: How close the policy is held to the reference.
    """

    def __init__(self, beta: float) -> None:
        self.beta = beta

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        return cls(take_beta(fields))

    def loss(
        self, ratio: torch.Tensor, example: FeedbackExample, point: torch.Tensor
    ) -> torch.Tensor:
        """A half of equation 7."""
        del point
        value = torch.sigmoid(self.beta * ratio)
        return 1 - value if example.good else value


TAKE: Take = ApoZeroUnpaired.take
