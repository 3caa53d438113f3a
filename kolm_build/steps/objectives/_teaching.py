"""What objectives that learn from another model share: the teacher, its logits, the mean."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch.nn.functional import cross_entropy

from kolm_build.core.fields import Fields
from kolm_build.errors import InvalidRecordError
from kolm_build.runtime.loading import Model, load
from kolm_build.steps._answers import AnswerMean
from kolm_build.steps._bounds import decimal
from kolm_build.steps._conversations import read_conversations
from kolm_build.steps._files import input_folder
from kolm_build.steps._given import Given
from kolm_build.steps._objective import Share
from kolm_build.steps._sequences import Continuation, answer_logits, mixture

TEACHER = "teacher"


class TaughtObjective(AnswerMean):
    """The mean over a step's answer tokens of a distance of the student from what it is taught.

    With `hard_weight` h it is (1 - h) of that and h of the answers' own likelihood.

    Args:
        hard_weight: The share of the likelihood of the answers.
        temperature: Both models' logits are divided by it, and the distance is multiplied by its
            square, so that gradients keep their size (arXiv:1503.02531, section 2.1).
    """

    figures = ("distance", "nll")

    def __init__(self, hard_weight: float, temperature: float) -> None:
        self.hard_weight = hard_weight
        self.temperature = temperature

    @abstractmethod
    def taught(self, example: Any) -> Any:
        """What the teacher expects at each of the answer's tokens."""

    @abstractmethod
    def _distance(self, logits: torch.Tensor, taught: Any) -> torch.Tensor:
        """The distance at each token, shape (tokens,), of logits of shape (tokens, words)."""

    def share(self, network: Any, example: Continuation, context: int) -> Share:
        """The row's part of the mean."""
        taught = self.taught(example)
        logits, ids = answer_logits(network, example)
        distance = self._distance(logits, taught).sum() / context
        nll = cross_entropy(logits, ids, reduction="sum") / context
        loss = (1 - self.hard_weight) * distance + self.hard_weight * nll
        return Share(loss=loss, figures=(distance.detach(), nll.detach()))


class TeachingObjective(TaughtObjective):
    """A distance from a teacher that reads every row beside the student."""

    def examples(self, given: Given) -> Sequence[Continuation]:
        """Prompt and answer of every row."""
        self.teacher = load_teacher(given)
        rows = enumerate(read_conversations(given.rows()), start=1)
        return [
            given.tokens.sequence(row.messages, row.answer, f"row {at} ({row.id})")
            for at, row in rows
        ]

    def taught(self, example: Continuation) -> torch.Tensor:
        """The teacher's logits, shape (tokens, words), without gradients."""
        with torch.no_grad():
            return answer_logits(self.teacher.network, example)[0]

    def _distance(self, logits: torch.Tensor, taught: torch.Tensor) -> torch.Tensor:
        student, teacher = (
            torch.log_softmax(one / self.temperature, dim=-1) for one in (logits, taught)
        )
        return self.temperature**2 * self.distance(student, teacher)

    @abstractmethod
    def distance(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """The distance at each token, shape (tokens,), of log-probabilities (tokens, words)."""


class SkewObjective(TeachingObjective):
    """A distance from a mixture of both models.

    Args:
        hard_weight: The share of the likelihood of the answers.
        temperature: Of both models.
        alpha: The skew; at 0 the mixture is one of them.
    """

    def __init__(self, hard_weight: float, temperature: float, alpha: float) -> None:
        super().__init__(hard_weight, temperature)
        self.alpha = alpha

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        return cls(
            take_hard_weight(fields),
            take_temperature(fields),
            decimal(fields, "alpha", "0.1", least=0.0, most=0.99),
        )


def take_hard_weight(fields: Fields, default: str = "0") -> float:
    """The parameter ``hard_weight``."""
    return decimal(fields, "hard_weight", default, least=0.0, most=1.0)


def take_temperature(fields: Fields, default: str = "1") -> float:
    """The parameter ``temperature``."""
    return decimal(fields, "temperature", default, least=0.01, most=100.0)


def divergence(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """KL(one || other) at each token, of log-probabilities of shape (tokens, words)."""
    return (torch.exp(one) * (one - other)).sum(dim=-1)


def jensen_shannon(student: torch.Tensor, teacher: torch.Tensor, beta: float) -> torch.Tensor:
    """The generalised divergence at each token (arXiv:2306.13649, equation 1)."""
    mean = mixture(teacher, student, beta)
    return beta * divergence(teacher, mean) + (1 - beta) * divergence(student, mean)


def absolute(values: torch.Tensor) -> torch.Tensor:
    """|values|; torch's own has a derivative that is not certified."""
    return torch.relu(values) + torch.relu(-values)


def load_teacher(given: Given, *, same_tokens: bool = True) -> Model:
    """The model of the input ``teacher``, frozen.

    Raises:
        InvalidRecordError: Its tokens are others, where they must be the same.
    """
    dtype = next(given.model.network.parameters()).dtype
    model = load(input_folder(given.request, TEACHER), dtype=dtype)
    ours, theirs = (
        one.chat.tokenizer.get_vocab(with_added_tokens=True) for one in (given.model, model)
    )
    if same_tokens and ours != theirs:
        raise InvalidRecordError(
            "the teacher has other tokens than the model",
            where=TEACHER,
            expected=f"the model's {len(ours)} tokens",
            actual=f"{len(theirs)} tokens, {len(ours.items() & theirs.items())} of them the same",
            advice='Use algorithm = "uld", which compares distributions and not tokens.',
        )
    model.network.requires_grad_(requires_grad=False)
    return model
