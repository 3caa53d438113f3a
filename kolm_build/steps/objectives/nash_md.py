"""``nash-md``: Nash learning by mirror descent (arXiv:2312.00886, section 7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch

from kolm_build.core.fields import Fields
from kolm_build.steps._bounds import decimal
from kolm_build.steps._objective import Moment, Share
from kolm_build.steps._rewards import RewardParams, judged
from kolm_build.steps._rollouts import PromptExample, Sampling
from kolm_build.steps._sequences import Continuation
from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._policy import PromptObjective


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """An answer of the policy, against one of a mixture.

    Attributes:
        sequence: The prompt and the policy's answer.
        weight: P(it is preferred) - 1/2 - tau log (p / p_ref) of it.
        preferred: P(it is preferred).
        reward: What it is worth.
        rows: Rows of the step.
    """

    sequence: Continuation
    weight: float
    preferred: float
    reward: float
    rows: int


class NashMd(PromptObjective):
    """The policy gradient of winning against p^(1 - mixture) p_ref^mixture (Nash-MD-PG).

    The preference is sigmoid(r(y) - r(y')), so any reward will do.

    Args:
        sampling: How answers are drawn.
        reward: What they are worth.
        tau: Weight of the divergence from the reference.
        mixture: Share of the reference in the opponent.
    """

    figures = ("reward", "preferred")
    needs_reference = True

    def __init__(
        self, sampling: Sampling, reward: RewardParams, *, tau: float, mixture: float
    ) -> None:
        super().__init__(sampling, reward)
        self._tau = tau
        self._mixture = mixture

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        return cls(
            Sampling.fixed(fields, 1),
            RewardParams.take(fields),
            tau=decimal(fields, "tau", "0.1", least=0.0, most=100.0),
            mixture=decimal(fields, "mixture", "0.5", least=0.0, most=1.0),
        )

    def prepare(
        self, network: Any, examples: Sequence[PromptExample], moment: Moment
    ) -> Sequence[Match]:
        """An answer of the policy and one of the mixture for each prompt, judged."""
        prompts = [one.ids for one in examples]
        own = self.sampler.draw(network, prompts, moment.seeds)
        opponents = self.sampler.draw_mixed(
            network,
            lambda: self.given.change.reference(network),
            prompts,
            moment.seeds,
            share=self._mixture,
            first=1,
        )
        said = [[one, other] for (one,), other in zip(own, opponents, strict=True)]
        self.note(said)
        with self.reward.judging() as judge:
            rewards = [judged(judge, *one) for one in zip(examples, said, strict=True)]
        return [
            self._match(network, one.sequence, *worth, rows=len(examples))
            for (one, _), worth in zip(said, rewards, strict=True)
        ]

    def _match(
        self, network: Any, sequence: Continuation, reward: float, other: float, *, rows: int
    ) -> Match:
        preferred = float(torch.sigmoid(torch.tensor(reward - other)))
        policy = self.log_probabilities(network, sequence).sum()
        (reference,) = self.referred(network, [sequence])
        apart = float(policy - reference.sum())
        return Match(
            sequence=sequence,
            weight=preferred - 0.5 - self._tau * apart,
            preferred=preferred,
            reward=reward,
            rows=rows,
        )

    def share(self, network: Any, example: PromptExample, context: Match) -> Share:
        """-weight log p(y), the row's part of the mean."""
        del example
        policy = self.log_probabilities(network, context.sequence).sum()
        return Share(
            loss=-context.weight * policy / context.rows,
            figures=(torch.tensor(context.reward), torch.tensor(context.preferred)),
        )


TAKE: Take = NashMd.take
