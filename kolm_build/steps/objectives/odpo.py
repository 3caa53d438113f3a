"""``odpo``: direct preference optimisation with an offset (arXiv:2402.10571, equation 8)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch.nn.functional import logsigmoid

from kolm_build.core.fields import Fields
from kolm_build.errors import InvalidDataError
from kolm_build.steps._bounds import decimal
from kolm_build.steps._given import Given
from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._pairs import PairExample, PairObjective, Side, take_beta


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class Odpo(PairObjective):
    """-log s(beta difference - alpha log(margin of the row)).

    Args:
        beta: How close the policy is held to the reference.
        alpha: The factor of the offset.
    """

    def __init__(self, beta: float, alpha: float) -> None:
        self.beta = beta
        self.alpha = alpha

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        return cls(take_beta(fields), decimal(fields, "alpha", "1", least=0.0, most=1000.0))

    def examples(self, given: Given) -> Sequence[PairExample]:
        """Both answers of every row.

        Raises:
            InvalidDataError: A row has no margin above 0.
        """
        made = super().examples(given)
        for example in made:
            if not example.margin > 0:
                raise InvalidDataError(
                    "an offset needs a margin",
                    file="train.jsonl",
                    where=f"row {example.number + 1}, margin",
                    expected="a decimal number above 0",
                    actual=f"{example.margin:g}",
                )
        return made

    def loss(self, chosen: Side, rejected: Side, example: PairExample) -> torch.Tensor:
        """Equation 8, one row."""
        difference = self.beta * (chosen.ratio - rejected.ratio)
        offset = self.alpha * torch.log(difference.new_tensor(example.margin))
        return -logsigmoid(difference - offset)


TAKE: Take = Odpo.take
