"""Rows as token ids, and the log-probabilities that a network gives them (spec/algorithms.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kolm_build.errors import InvalidDataError
from kolm_build.runtime.loading import Model

IGNORED = -100
"""The label of a token without a loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """A prompt and what follows it.

    Attributes:
        ids: Token ids of both.
        start: Index of the first token that follows the prompt.
    """

    ids: tuple[int, ...]
    start: int

    @property
    def labels(self) -> list[int]:
        """The ids, those of the prompt as `IGNORED`."""
        return [IGNORED] * self.start + list(self.ids[self.start :])

    @property
    def tokens(self) -> int:
        """How many tokens follow the prompt."""
        return len(self.ids) - self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokeniser:
    """Turns prompts and answers into sequences; nothing is ever cut off.

    Attributes:
        model: Whose template and tokens.
        max_length: Most tokens of a sequence.
    """

    model: Model
    max_length: int

    def prompt(self, messages: Sequence[Mapping[str, str]], where: str) -> tuple[int, ...]:
        """The ids of a prompt with the place for an answer opened."""
        ids = tuple(self.model.chat.prompt_ids(messages))
        self.check(len(ids), where)
        return ids

    def sequence(
        self, messages: Sequence[Mapping[str, str]], answer: str, where: str
    ) -> Continuation:
        """The prompt of `messages` and `answer` after it.

        Args:
            messages: The turns before the answer.
            answer: The answer.
            where: The row, for the error: ``row 3 (sha256:…)``.

        Raises:
            InvalidDataError: There are more than `max_length` tokens, or than the window holds.
        """
        prompt = self.model.chat.prompt_ids(messages)
        ids = (*prompt, *self.model.chat.answer_ids(answer))
        self.check(len(ids), where)
        return Continuation(ids=ids, start=len(prompt))

    def check(self, length: int, where: str) -> None:
        """Refuse more tokens than a row may have."""
        most = min(self.max_length, self.model.window)
        if length > most:
            raise InvalidDataError(
                "a row has too many tokens",
                file="train.jsonl",
                where=where,
                expected=f"at most {most} tokens",
                actual=f"{length} tokens",
                advice="Raise max_length, or leave the row out: rows are never cut off.",
            )


def answer_logits(network: Any, sequence: Continuation) -> tuple[torch.Tensor, torch.Tensor]:
    """What `network` expects at each token after the prompt, and those tokens.

    Returns:
        Logits, shape (tokens, vocabulary), float32, and ids, shape (tokens,).
    """
    ids = torch.tensor([sequence.ids])
    places = torch.arange(sequence.start - 1, len(sequence.ids) - 1)
    logits = network(
        input_ids=ids, attention_mask=torch.ones_like(ids), logits_to_keep=places
    ).logits
    return logits[0].float(), ids[0, sequence.start :]


def token_log_probabilities(network: Any, sequence: Continuation) -> torch.Tensor:
    """Log p of each token after the prompt, shape (tokens,), float32."""
    logits, ids = answer_logits(network, sequence)
    return -torch.nn.functional.cross_entropy(logits, ids, reduction="none")


def log_probability(network: Any, sequence: Continuation) -> torch.Tensor:
    """Log p of all tokens after the prompt, shape ()."""
    return token_log_probabilities(network, sequence).sum()


def mixture(one: torch.Tensor, other: torch.Tensor, weight: float) -> torch.Tensor:
    """The log-probabilities of weight p_one + (1 - weight) p_other."""
    return torch.log(weight * torch.exp(one) + (1 - weight) * torch.exp(other))
