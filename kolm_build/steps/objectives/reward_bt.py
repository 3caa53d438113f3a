"""``reward-bt``: a reward model of preferences (Bradley-Terry; arXiv:2203.02155, equation 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch.nn.functional import logsigmoid

from kolm_build.core.fields import Fields
from kolm_build.steps._bounds import decimal
from kolm_build.steps._given import Given
from kolm_build.steps._objective import Share
from kolm_build.steps._reward_head import OUTCOME
from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._pairs import PairExample, pair_columns, pair_examples
from kolm_build.steps.objectives._reward import RewardObjective


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class RewardBradleyTerry(RewardObjective[PairExample]):
    """-log sigmoid(r(chosen) - r(rejected) - margin), r the head's number at the answer's end.

    Args:
        centre: Weight of (r(chosen) + r(rejected))^2, which holds rewards near 0
            (arXiv:2312.09244, section 2).
    """

    kind = OUTCOME
    figures = ("margin", "accuracy")

    def __init__(self, centre: float) -> None:
        self._centre = centre

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        return cls(decimal(fields, "centre", "0", least=0.0, most=100.0))

    def examples(self, given: Given) -> Sequence[PairExample]:
        """Both answers of every row."""
        return pair_examples(given)

    def columns(self, examples: Sequence[PairExample]) -> Mapping[str, Sequence[Sequence[int]]]:
        """Token ids and labels of both answers."""
        return pair_columns(examples)

    def share(self, network: Any, example: PairExample, context: int) -> Share:
        """The row's part of the mean."""
        chosen, rejected = (
            self.numbers(network, one.ids, [len(one.ids) - 1])[0]
            for one in (example.chosen, example.rejected)
        )
        apart = (chosen - rejected).detach()
        loss = pair_loss(chosen, rejected, example.margin, self._centre)
        return Share(loss=loss / context, figures=(apart, (apart > 0).float()))


def pair_loss(
    chosen: torch.Tensor, rejected: torch.Tensor, margin: float, centre: float
) -> torch.Tensor:
    """The loss of one pair of rewards; the margin is that of arXiv:2307.09288, equation 2."""
    loss = -logsigmoid(chosen - rejected - margin)
    return loss if centre == 0.0 else loss + centre * (chosen + rejected).square()


TAKE: Take = RewardBradleyTerry.take
