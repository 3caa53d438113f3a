"""``raft``: learning the best of several own answers (arXiv:2304.06767, algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from kolm_build.core.fields import Fields
from kolm_build.steps._bounds import count
from kolm_build.steps._rewards import Judge, RewardParams, judged
from kolm_build.steps._rollouts import PromptExample, Sampling
from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._kept import Choice, KeptObjective


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class Raft(KeptObjective):
    """Rejection sampling: of a prompt's answers the one with the largest reward is learned."""

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        return cls(Sampling.take(fields), RewardParams.take(fields), count(fields, "iterations", 1))

    def choose(
        self, network: Any, examples: Sequence[PromptExample], seeds: Sequence[int], judge: Judge
    ) -> list[Choice]:
        """The best of each row; of equals the first."""
        said = self.sampler.draw(network, [one.ids for one in examples], seeds)
        self.note(said)
        rewards = [judged(judge, *one) for one in zip(examples, said, strict=True)]
        return [
            Choice(sequence=row[best(worth)].sequence, rewards=worth)
            for row, worth in zip(said, rewards, strict=True)
        ]


def best(rewards: Sequence[float]) -> int:
    """The index of the largest; of equals the first."""
    return rewards.index(max(rewards))


TAKE: Take = Raft.take
