"""``gkd``: distillation on what the student says itself (arXiv:2306.13649, algorithm 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch

from kolm_build.core.fields import Fields
from kolm_build.steps._bounds import decimal
from kolm_build.steps._conversations import read_prompts
from kolm_build.steps._given import Given
from kolm_build.steps._objective import Moment, Objective, Share
from kolm_build.steps._rollouts import Completion, PromptExample, Sampler, Sampling
from kolm_build.steps._sequences import answer_logits
from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._teaching import jensen_shannon, load_teacher


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a row knows of its step.

    Attributes:
        completion: What the student said to the prompt.
        tokens: Tokens of all that it said in this step.
    """

    completion: Completion
    tokens: int


class Gkd(Objective[PromptExample, Said]):
    """The generalised Jensen-Shannon divergence at the tokens that the student drew itself.

    No gradient flows through the drawing.

    Args:
        sampling: How the student's answers are drawn.
        beta: The teacher's weight in the mixture.
    """

    figures = ("said_tokens",)

    def __init__(self, sampling: Sampling, beta: float) -> None:
        self.sampling = sampling
        self.beta = beta

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        return cls(
            Sampling.fixed(fields, 1), decimal(fields, "beta", "0.5", least=1e-6, most=1 - 1e-6)
        )

    def examples(self, given: Given) -> Sequence[PromptExample]:
        """Every prompt."""
        self.teacher = load_teacher(given)
        self._sampler = Sampler(given, self.sampling)
        return [
            PromptExample(
                number=at,
                row=row,
                ids=given.tokens.prompt(row.messages, f"row {at + 1} ({row.id})"),
            )
            for at, row in enumerate(read_prompts(given.rows()))
        ]

    def columns(self, examples: Sequence[PromptExample]) -> Mapping[str, Sequence[Sequence[int]]]:
        """Token ids of the prompts."""
        return {"input_ids": [list(one.ids) for one in examples]}

    def prepare(
        self, network: Any, examples: Sequence[PromptExample], moment: Moment
    ) -> Sequence[Said]:
        """What the student says now."""
        drawn = self._sampler.draw(network, [one.ids for one in examples], moment.seeds)
        tokens = sum(one.sequence.tokens for (one,) in drawn)
        return [Said(completion=one, tokens=tokens) for (one,) in drawn]

    def share(self, network: Any, example: PromptExample, context: Said) -> Share:
        """The row's part of the mean over tokens."""
        del example
        sequence = context.completion.sequence
        with torch.no_grad():
            taught, _ = answer_logits(self.teacher.network, sequence)
        logits, _ = answer_logits(network, sequence)
        student, teacher = torch.log_softmax(logits, dim=-1), torch.log_softmax(taught, dim=-1)
        distance = jensen_shannon(student, teacher, self.beta)
        told = logits.new_tensor(float(sequence.tokens))
        return Share(loss=distance.sum() / context.tokens, figures=(told,))


TAKE: Take = Gkd.take
