"""``dft``: dynamic fine-tuning (arXiv:2508.05629)."""

from __future__ import annotations

import torch

from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._answers import AnswerObjective, negative_log_likelihoods


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class Dft(AnswerObjective):
    """-sg(p) log p of every token: sure ones count, so that a gradient is not scaled by 1 / p."""

    def losses(self, logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """-sg(p) log p, without the sum."""
        nll = negative_log_likelihoods(logits, ids)
        return torch.exp(-nll.detach()) * nll


TAKE: Take = Dft.take
