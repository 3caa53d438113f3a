"""``kd-cached``: distillation of soft targets that a step of its own kept (DIST-86 to DIST-89)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch

from kolm_build.core.fields import Fields
from kolm_build.errors import InvalidRecordError
from kolm_build.steps._bounds import count
from kolm_build.steps._conversations import read_conversations
from kolm_build.steps._files import input_folder
from kolm_build.steps._given import Given
from kolm_build.steps._sequences import Continuation
from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps._teacher_logits import (
    HEAD,
    Head,
    Likeliest,
    Row,
    TeacherLogits,
    check_row,
    digest_of_vocabulary,
)
from kolm_build.steps.objectives._teaching import (
    TaughtObjective,
    take_hard_weight,
    take_temperature,
)

LOGITS = "logits"
FAR = -(2.0**100)
"""The log-probability of what is left out of a sum: its exponential is 0, and no number is lost."""
LEAST = 2.0**-126
"""The least probability whose logarithm is taken, float32's least normal number."""


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Taught(Continuation):
    """A row, and where what the teacher expects of it is kept.

    Attributes:
        begin: The number of answer tokens of all rows before it.
    """

    begin: int


class KdCached(TaughtObjective):
    """The forward divergence over the teacher's likeliest tokens and the rest as one more.

    Args:
        hard_weight: The share of the likelihood of the answers.
        temperature: Of both models.
        top_k: How many of the teacher's tokens are kept.
    """

    def __init__(self, hard_weight: float, temperature: float, top_k: int) -> None:
        super().__init__(hard_weight, temperature)
        self.top_k = top_k

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        return cls(
            take_hard_weight(fields, "0.1"),
            take_temperature(fields, "2"),
            count(fields, "teacher_top_k", 64),
        )

    def examples(self, given: Given) -> Sequence[Taught]:
        """Prompt and answer of every row, each the one that the teacher read."""
        kept = TeacherLogits.read(input_folder(given.request, LOGITS))
        self._check(kept.head, given)
        rows = read_conversations(given.rows())
        if len(rows) != len(kept.rows):
            raise InvalidRecordError(
                "the teacher read another number of rows",
                where=LOGITS,
                expected=f"{len(rows)} rows",
                actual=f"{len(kept.rows)} rows",
            )
        self.kept = kept.likeliest
        made: list[Taught] = []
        begin = 0
        for at, row in enumerate(rows, start=1):
            one = given.tokens.sequence(row.messages, row.answer, f"row {at} ({row.id})")
            check_row(kept.rows[at - 1], Row.of(row.id, one), at)
            made.append(Taught(ids=one.ids, start=one.start, begin=begin))
            begin += one.tokens
        return made

    def _check(self, head: Head, given: Given) -> None:
        """Refuse logits of another kind than the stage asks for, or of other tokens."""
        model = given.model
        wanted = {
            "temperature": self.temperature,
            "top_k": self.top_k,
            "words": int(model.network.config.vocab_size),
            "vocabulary": digest_of_vocabulary(model),
        }
        found = {
            "temperature": float(head.temperature),
            "top_k": head.top_k,
            "words": head.words,
            "vocabulary": head.vocabulary,
        }
        for name, value in wanted.items():
            if found[name] != value:
                raise InvalidRecordError(
                    "the teacher's logits do not fit the student",
                    file=HEAD,
                    where=name,
                    expected=str(value),
                    actual=str(found[name]),
                    advice='Use algorithm = "uld" for a teacher with other tokens.'
                    if name in ("words", "vocabulary")
                    else "Keep them anew with the stage's own parameters.",
                )

    def taught(self, example: Taught) -> Likeliest:
        """What the teacher expects, as it was kept."""
        return self.kept.part(example.begin, example.begin + example.tokens)

    def _distance(self, logits: torch.Tensor, taught: Likeliest) -> torch.Tensor:
        student = torch.log_softmax(logits / self.temperature, dim=-1)
        return self.temperature**2 * coarse_divergence(student, taught)


def coarse_divergence(student: torch.Tensor, taught: Likeliest) -> torch.Tensor:
    """KL(t || q) with all tokens that are not kept taken as one, at each token.

    The sum over the kept tokens i of t_i log(t_i / q_i), and t_R log(t_R / q_R) where t_R and q_R
    are what each gives to all others together. At most KL(t || q), and equal to it where at most
    one token is not kept.

    Args:
        student: Log-probabilities, shape (tokens, words).
        taught: What the teacher expects there.

    Returns:
        Shape (tokens,).
    """
    ids, known = taught.token_ids, taught.log_probabilities
    kept = (torch.exp(known) * (known - student.gather(1, ids))).sum(dim=-1)
    if ids.shape[1] == student.shape[1]:
        return kept
    others = torch.logsumexp(student.scatter(1, ids, FAR), dim=-1)
    return kept + taught.rest * (torch.log(taught.rest.clamp(min=LEAST)) - others)


TAKE: Take = KdCached.take
