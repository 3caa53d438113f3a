"""``label-smoothing``: a share of every target on the whole vocabulary (arXiv:1512.00567, 7)."""

from __future__ import annotations

from typing import Self

import torch

from kolm_build.core.fields import Fields
from kolm_build.steps._bounds import decimal
from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._answers import AnswerObjective, negative_log_likelihoods


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class LabelSmoothing(AnswerObjective):
    """(1 - e) (-log p(token)) + e mean over the vocabulary of -log p.

    Args:
        share: e.
    """

    def __init__(self, share: float) -> None:
        self.smoothing = share

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        return cls(decimal(fields, "smoothing", "0.1", least=0.0, most=1.0))

    def losses(self, logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Section 7: the cross-entropy with q' = (1 - e) q + e / K."""
        everywhere = -torch.nn.functional.log_softmax(logits, dim=-1).mean(dim=-1)
        nll = negative_log_likelihoods(logits, ids)
        return (1 - self.smoothing) * nll + self.smoothing * everywhere


TAKE: Take = LabelSmoothing.take
