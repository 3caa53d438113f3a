"""``self-rewarding``: a model that judges its own answers (arXiv:2401.10020, section 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import fsum
from typing import Any, Self

import torch

from kolm_build.core.fields import Fields
from kolm_build.steps._bounds import count, decimal
from kolm_build.steps._rollouts import Completion, PromptExample, Sampling
from kolm_build.steps._sequences import Continuation, log_probability
from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._duels import DuelObjective


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


SCORES = ("0", "1", "2", "3", "4", "5")
ASK = """Judge how good the answer to this question is.

Question: {question}

Answer: {answer}

Give 0 to 5 points: one each if the answer is to the point, covers most of the question, is \
useful, is clear and well ordered, and is free of anything superfluous or wrong. Say the number of \
points and nothing else."""
"""The judge's prompt, after figure 2 of the paper."""


class SelfRewarding(DuelObjective):
    """DPO of the best and the worst of a model's answers by the model's own judgement.

    Both who answers and who judges is the model as the stage begins, so that a stage is one
    iteration of the paper's. A score is what the model expects: the sum of k p(k) over 0 to 5.
    """

    figures = ("points", "margin", "accuracy", "ties")  # of the model as it was: they do not rise

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        return cls(
            Sampling.take(fields, generations=4),
            None,
            beta=decimal(fields, "beta", "0.1", least=0.0, most=100.0),
            iterations=count(fields, "iterations", 1),
        )

    def answers(
        self, network: Any, examples: Sequence[PromptExample], seeds: Sequence[int]
    ) -> list[list[Completion]]:
        """Those of the model as the stage began."""
        with self.given.change.reference(network):
            return self.sampler.draw(network, [one.ids for one in examples], seeds)

    def rewards(
        self,
        network: Any,
        examples: Sequence[PromptExample],
        answers: Sequence[Sequence[Completion]],
    ) -> list[Sequence[float]]:
        """The scores by the same model."""
        with self.given.change.reference(network):
            return [
                [self._score(network, example, one.text) for one in row]
                for example, row in zip(examples, answers, strict=True)
            ]

    def _score(self, network: Any, example: PromptExample, answer: str) -> float:
        chat = self.given.model.chat
        prompt = chat.prompt_ids(judging(example.row.messages, answer))
        found = []
        for score in SCORES:
            ids = (*prompt, *chat.answer_ids(score))
            self.given.tokens.check(len(ids), f"{example.where}, its judgement")
            found.append(log_probability(network, Continuation(ids=ids, start=len(prompt))))
        return expected_score(torch.stack(found))


def judging(messages: Sequence[Mapping[str, str]], answer: str) -> list[Mapping[str, str]]:
    """The turn that asks for a judgement of `answer` to the last turn of `messages`."""
    question = messages[-1]["content"] if messages else ""
    return [{"role": "user", "content": ASK.format(question=question, answer=answer)}]


def expected_score(log_likelihoods: torch.Tensor) -> float:
    """The sum of k p(k), p the softmax of `log_likelihoods`, shape (6,)."""
    chances = log_likelihoods.softmax(dim=-1).tolist()
    return fsum(points * chance for points, chance in enumerate(chances))


TAKE: Take = SelfRewarding.take
