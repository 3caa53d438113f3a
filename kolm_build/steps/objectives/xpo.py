"""``xpo``: exploratory preference optimisation (arXiv:2405.21046, algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

import torch

from kolm_build.core.fields import Fields
from kolm_build.steps._bounds import count, decimal
from kolm_build.steps._rewards import RewardParams
from kolm_build.steps._rollouts import Completion, PromptExample, Sampler, Sampling
from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives.online_dpo import OnlineDpo


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class Xpo(OnlineDpo):
    """DPO of an answer of the policy and one of the reference, plus alpha log p of the latter.

    The bonus pushes probability away from what the reference would say, and so explores.
    """

    alpha: float

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        made = cls(
            Sampling.fixed(fields, 2),
            RewardParams.take(fields),
            beta=decimal(fields, "beta", "0.1", least=0.0, most=100.0),
            iterations=count(fields, "iterations", 1),
        )
        made.alpha = decimal(fields, "alpha", "0.00001", least=0.0, most=100.0)
        return made

    def answers(
        self, network: Any, examples: Sequence[PromptExample], seeds: Sequence[int]
    ) -> list[list[Completion]]:
        """One of the policy, then one of the reference."""
        prompts = [one.ids for one in examples]
        single = Sampler(self.given, replace(self.sampling, generations=1))
        own = single.draw(network, prompts, seeds)
        with self.given.change.reference(network):
            other = single.draw(network, prompts, seeds, first=1)
        return [[*one, *two] for one, two in zip(own, other, strict=True)]

    def bonus(self, second: torch.Tensor) -> torch.Tensor:
        """Alpha log p of the reference's answer."""
        return self.alpha * second


TAKE: Take = Xpo.take
