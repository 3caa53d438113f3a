"""``wpo``: weighted preference optimisation (arXiv:2406.11827, equations 2 and 4)."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import log_softmax, logsigmoid

from kolm_build.steps._objective import Share
from kolm_build.steps._sequences import answer_logits
from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._pairs import BetaObjective, PairExample, Side, StepSize


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class Wpo(BetaObjective):
    """DPO's loss times how likely the policy itself were to say the two answers."""

    def share(self, network: Any, example: PairExample, context: StepSize) -> Share:
        """DPO's part, weighted; no gradient flows through the weights."""
        with torch.no_grad():
            weights = [
                weight(*answer_logits(network, one)) for one in (example.chosen, example.rejected)
            ]
        share = super().share(network, example, context)
        return Share(loss=share.loss * weights[0] * weights[1], figures=share.figures)

    def loss(self, chosen: Side, rejected: Side, example: PairExample) -> torch.Tensor:
        """DPO's loss, one row."""
        del example
        return -logsigmoid(self.beta * (chosen.ratio - rejected.ratio))


def weight(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The weight exp(mean over tokens of log p - log sum p^2) (equation 2, aligned)."""
    every = log_softmax(logits, dim=-1)
    aligned = every.gather(1, ids[:, None])[:, 0] - torch.logsumexp(2 * every, dim=-1)
    return torch.exp(aligned.mean())


TAKE: Take = Wpo.take
