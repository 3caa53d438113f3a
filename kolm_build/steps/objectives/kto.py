"""``kto``: Kahneman-Tversky optimisation (arXiv:2402.01306, equation 8)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch

from kolm_build.core.fields import Fields
from kolm_build.steps._bounds import decimal
from kolm_build.steps._sequences import Continuation, log_probability
from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._feedback import FeedbackExample, FeedbackObjective
from kolm_build.steps.objectives._pairs import take_beta


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class Kto(FeedbackObjective):
    """lambda (1 - s(beta (ratio - z))) of a good answer, lambda (1 - s(beta (z - ratio))) of a bad.

    z is the mean log ratio, 0 at the least, of the step's prompts each with the next row's answer.

    Args:
        beta: How averse to risk people are thought to be.
        good_weight: lambda of good answers.
        bad_weight: lambda of bad ones.
    """

    needs_reference = True

    def __init__(self, beta: float, good_weight: float, bad_weight: float) -> None:
        self.beta = beta
        self.good_weight = good_weight
        self.bad_weight = bad_weight

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        return cls(
            take_beta(fields),
            decimal(fields, "good_weight", "1", least=0.0, most=1000.0),
            decimal(fields, "bad_weight", "1", least=0.0, most=1000.0),
        )

    def point(self, network: Any, examples: Sequence[FeedbackExample]) -> torch.Tensor:
        """The point z of the step (equation 7 as section 4.1 estimates it)."""
        mixed = [
            mismatched(one, other)
            for one, other in zip(examples, [*examples[1:], examples[0]], strict=True)
        ]
        policy = [log_probability(network, one) for one in mixed]
        with self._change.reference(network):
            reference = [log_probability(network, one) for one in mixed]
        return torch.relu((torch.stack(policy) - torch.stack(reference)).mean())

    def loss(
        self, ratio: torch.Tensor, example: FeedbackExample, point: torch.Tensor
    ) -> torch.Tensor:
        """Equation 8, one row."""
        if example.good:
            return self.good_weight * (1 - torch.sigmoid(self.beta * (ratio - point)))
        return self.bad_weight * (1 - torch.sigmoid(self.beta * (point - ratio)))


def mismatched(one: FeedbackExample, other: FeedbackExample) -> Continuation:
    """The prompt of `one` with the answer of `other`."""
    prompt = one.sequence.ids[: one.sequence.start]
    answer = other.sequence.ids[other.sequence.start :]
    return Continuation(ids=(*prompt, *answer), start=len(prompt))


TAKE: Take = Kto.take
