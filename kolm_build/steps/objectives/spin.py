"""``spin``: self-play against the model as it was (arXiv:2401.01335, equation 4.7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch

from kolm_build.core.fields import Fields
from kolm_build.steps._answers import AnswerRows
from kolm_build.steps._bounds import count, decimal
from kolm_build.steps._conversations import read_conversations
from kolm_build.steps._given import Given
from kolm_build.steps._objective import Moment, Share
from kolm_build.steps._rollouts import Sampler, Sampling, samples_digest
from kolm_build.steps._sequences import Continuation, log_probability
from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._duels import preference_loss


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What the model as it was says in place of a row's answer.

    Attributes:
        said: The prompt and what it said.
        real_reference: Log p of the row's answer under it, shape ().
        said_reference: Log p of what it said under it, shape ().
        rows: Rows of the step.
    """

    said: Continuation
    real_reference: torch.Tensor
    said_reference: torch.Tensor
    rows: int


class Spin(AnswerRows[Round]):
    """-log sigmoid(beta (log ratio of the row's answer - log ratio of the opponent's)).

    The opponent is the model as the stage begins; the paper's next iteration is another stage.
    """

    figures = ("margin", "accuracy")
    notes = ("samples",)
    needs_reference = True

    def __init__(self, sampling: Sampling, *, beta: float, iterations: int) -> None:
        self._sampling = sampling
        self._beta = beta
        self.repeats = iterations

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        return cls(
            Sampling.fixed(fields, 1),
            beta=decimal(fields, "beta", "0.1", least=0.0, most=100.0),
            iterations=count(fields, "iterations", 1),
        )

    def examples(self, given: Given) -> Sequence[Continuation]:
        """Prompt and answer of every row; there must be room for another answer."""
        made = []
        for number, row in enumerate(read_conversations(given.rows()), 1):
            where = f"row {number} ({row.id})"
            made.append(given.tokens.sequence(row.messages, row.answer, where))
            given.tokens.check(made[-1].start + self._sampling.max_new_tokens, where)
        self._sampler = Sampler(given, self._sampling)
        self._change = given.change
        return made

    def noted(self) -> Mapping[str, str]:
        """The digest of all that the opponent said in this step."""
        return {"samples": self._samples}

    def prepare(
        self, network: Any, examples: Sequence[Continuation], moment: Moment
    ) -> Sequence[Round]:
        """Let the opponent speak; the same again while its answers are used again."""
        if moment.repeat == 0:
            with self._change.reference(network):
                self._rounds = self._played(network, examples, moment.seeds)
        return self._rounds

    def _played(
        self, network: Any, examples: Sequence[Continuation], seeds: Sequence[int]
    ) -> list[Round]:
        said = self._sampler.draw(network, [one.ids[: one.start] for one in examples], seeds)
        self._samples = samples_digest(said)
        return [
            Round(
                said=one.sequence,
                real_reference=log_probability(network, example),
                said_reference=log_probability(network, one.sequence),
                rows=len(examples),
            )
            for example, (one,) in zip(examples, said, strict=True)
        ]

    def share(self, network: Any, example: Continuation, context: Round) -> Share:
        """The row's part of the mean."""
        real = log_probability(network, example) - context.real_reference
        said = log_probability(network, context.said) - context.said_reference
        margin = real - said
        loss = preference_loss(margin, self._beta, is_tie=False)
        apart = margin.detach()
        return Share(loss=loss / context.rows, figures=(apart, (apart > 0).float()))


TAKE: Take = Spin.take
