"""``bco``: binary classifier optimisation (arXiv:2404.04656, equations 8 and 13)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch.nn.functional import logsigmoid

from kolm_build.core.fields import Fields
from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._feedback import FeedbackExample, FeedbackObjective
from kolm_build.steps.objectives._pairs import take_beta


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class Bco(FeedbackObjective):
    """-log s(r - delta) of a good answer, -log s(delta - r) of a bad one, r = beta ratio.

    delta is the mean of all rewards so far, of the steps before this one and of this one.

    Args:
        beta: How close the policy is held to the reference.
    """

    def __init__(self, beta: float) -> None:
        self.beta = beta
        self._sum = torch.zeros(())
        self._rows = 0

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        return cls(take_beta(fields))

    def point(self, network: Any, examples: Sequence[FeedbackExample]) -> torch.Tensor:
        """Delta (section 4.3): a running mean."""
        rewards = torch.stack([self.beta * self.ratio(network, one) for one in examples])
        self._sum = self._sum + rewards.sum()
        self._rows += len(examples)
        return self._sum / self._rows

    def state(self) -> Mapping[str, torch.Tensor]:
        """The sum of the rewards so far, and their number."""
        return {"rows": torch.tensor(float(self._rows)), "sum": self._sum}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take them back."""
        self._rows, self._sum = int(state["rows"]), state["sum"].clone()

    def loss(
        self, ratio: torch.Tensor, example: FeedbackExample, point: torch.Tensor
    ) -> torch.Tensor:
        """Equation 13, one row."""
        shifted = self.beta * ratio - point
        return -logsigmoid(shifted if example.good else -shifted)


TAKE: Take = Bco.take
