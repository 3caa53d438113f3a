"""``cdpo``: conservative direct preference optimisation (E. Mitchell, 2023, equation 4)."""

from __future__ import annotations

from typing import Self

import torch
from torch.nn.functional import logsigmoid

from kolm_build.core.fields import Fields
from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._pairs import (
    PairExample,
    PairObjective,
    Side,
    take_beta,
    take_smoothing,
)


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class Cdpo(PairObjective):
    """(1 - e) DPO's loss + e DPO's loss with the answers swapped.

    Args:
        beta: How close the policy is held to the reference.
        label_smoothing: The share of pairs that are thought to be swapped.
    """

    def __init__(self, beta: float, label_smoothing: float) -> None:
        self.beta = beta
        self.label_smoothing = label_smoothing

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        return cls(take_beta(fields), take_smoothing(fields, "0.1"))

    def loss(self, chosen: Side, rejected: Side, example: PairExample) -> torch.Tensor:
        """One row."""
        del example
        scaled = self.beta * (chosen.ratio - rejected.ratio)
        kept, swapped = -logsigmoid(scaled), -logsigmoid(-scaled)
        return (1 - self.label_smoothing) * kept + self.label_smoothing * swapped


TAKE: Take = Cdpo.take
