"""``online-dpo``: direct preference optimisation of own answers (arXiv:2402.04792, algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from kolm_build.core.fields import Fields
from kolm_build.steps._bounds import count, decimal
from kolm_build.steps._rewards import RewardParams, judged
from kolm_build.steps._rollouts import Completion, PromptExample, Sampling
from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._duels import DuelObjective


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class OnlineDpo(DuelObjective):
    """DPO whose pairs are two answers of the policy itself, the better one by their rewards."""

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        return cls(
            Sampling.fixed(fields, 2),
            RewardParams.take(fields),
            beta=decimal(fields, "beta", "0.1", least=0.0, most=100.0),
            iterations=count(fields, "iterations", 1),
        )

    def answers(
        self, network: Any, examples: Sequence[PromptExample], seeds: Sequence[int]
    ) -> list[list[Completion]]:
        """Two of the policy."""
        return self.sampler.draw(network, [one.ids for one in examples], seeds)

    def rewards(
        self,
        network: Any,
        examples: Sequence[PromptExample],
        answers: Sequence[Sequence[Completion]],
    ) -> list[Sequence[float]]:
        """The reward's."""
        del network
        with self.reward.judging() as judge:
            return [judged(judge, *one) for one in zip(examples, answers, strict=True)]


TAKE: Take = OnlineDpo.take
