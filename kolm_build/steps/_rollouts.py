"""Completions drawn from a policy, the same ones in batches of any size (RL-1 to RL-9).

How a token is drawn is the runtime's matter (`kolm_build.runtime.draws`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from hashlib import sha256
from itertools import groupby
from typing import Any, Self

import torch

from kolm_build.core import cbor
from kolm_build.core.fields import Fields
from kolm_build.core.numerics import PORTABLE
from kolm_build.runtime.distribution import Distribution
from kolm_build.runtime.draws import draw_number, drawn
from kolm_build.runtime.generate import (
    Reader,
    continue_by,
    continue_greedily,
    read_prompts,
)
from kolm_build.runtime.ragged import joined
from kolm_build.steps._bounds import count, decimal
from kolm_build.steps._conversations import Prompt
from kolm_build.steps._generate import batches
from kolm_build.steps._given import Given
from kolm_build.steps._sequences import Continuation, answer_logits, mixture

ROWS_AT_ONCE = 64
"""Most completions that are drawn in one pass, if a prompt does not have more."""

Within = Callable[[], AbstractContextManager[Any]]
"""Makes a network the one that is asked: the policy, or its reference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How completions are drawn.

    Attributes:
        generations: Completions of a prompt.
        max_new_tokens: Most tokens of a completion, the end included.
        temperature: Logits are divided by it.
        top_p: The likeliest tokens that together have this probability are drawn from.
    """

    generations: int
    max_new_tokens: int
    temperature: float
    top_p: float

    @property
    def distribution(self) -> Distribution:
        """What tokens are drawn from."""
        return Distribution(temperature=self.temperature, top_p=self.top_p)

    @classmethod
    def take(cls, fields: Fields, *, generations: int = 8, least: int = 2) -> Self:
        """The parameters in `fields`; of completions there are `least` or more."""
        return cls(
            generations=count(fields, "generations", generations, least=least),
            max_new_tokens=count(fields, "max_new_tokens", 64),
            temperature=decimal(fields, "temperature", "1", least=0.01, most=100.0),
            top_p=decimal(fields, "top_p", "1", least=0.01, most=1.0),
        )

    @classmethod
    def fixed(cls, fields: Fields, generations: int) -> Self:
        """The parameters in `fields` where the algorithm says how many completions there are."""
        return cls(
            generations=generations,
            max_new_tokens=count(fields, "max_new_tokens", 64),
            temperature=decimal(fields, "temperature", "1", least=0.01, most=100.0),
            top_p=decimal(fields, "top_p", "1", least=0.01, most=1.0),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptExample:
    """A prompt as token ids.

    Attributes:
        number: The row's number, from 0.
        row: The row.
        ids: The prompt's tokens, the place for an answer opened.
    """

    number: int
    row: Prompt
    ids: tuple[int, ...]

    @property
    def where(self) -> str:
        """The row, for an error."""
        return f"row {self.number + 1} ({self.row.id})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What a policy said to a prompt.

    Attributes:
        sequence: The prompt and the tokens said, one or more.
        text: What they spell, special tokens left out.
        ended: Whether a token ended it, and not `max_new_tokens`.
    """

    sequence: Continuation
    text: str
    ended: bool


class Sampler:
    """Draws completions.

    Args:
        given: What the objective is given.
        sampling: How to draw.
    """

    def __init__(self, given: Given, sampling: Sampling) -> None:
        self._chat = given.model.chat
        self._caches = given.change.caches
        self._mixed = given.request.numerics.cls == PORTABLE
        self.sampling = sampling

    def draw(
        self, network: Any, prompts: Sequence[Sequence[int]], seeds: Sequence[int], first: int = 0
    ) -> list[list[Completion]]:
        """Completions of each of `prompts`, one seed for each.

        Args:
            network: The policy.
            prompts: Token ids.
            seeds: What is random about a prompt's completions follows from its own.
            first: Number of the first completion: other numbers, other draws.
        """
        times = self.sampling.generations
        return self._said(
            prompts,
            lambda batch: self._read(network, batch, times),
            lambda reader, rows: self._continued(reader, rows, seeds, first),
            times,
        )

    def draw_blended(
        self,
        network: Any,
        teacher: Any,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        *,
        share: float,
    ) -> list[list[Completion]]:
        """Completions of each of `prompts` from share t + (1 - share) q, a seed for each (DIST-61).

        Args:
            network: The student, whose probabilities are q.
            teacher: The teacher's network, whose probabilities are t; it is not asked where its
                share is 0.
            prompts: Token ids.
            seeds: What is random about a prompt's completions follows from its own.
            share: The teacher's weight, 0 to 1.
        """
        if share == 0.0:
            return self.draw(network, prompts, seeds)
        times = self.sampling.generations

        def read(batch: Sequence[Sequence[int]]) -> Reader:
            own, other = (self._read(one, batch, times) for one in (network, teacher))
            return Blend(own, other, share)

        return self._said(
            prompts, read, lambda reader, rows: self._continued(reader, rows, seeds, 0), times
        )

    def greedy(self, network: Any, prompts: Sequence[Sequence[int]]) -> list[Completion]:
        """The likeliest completion of each of `prompts`, token by token."""
        said = self._said(
            prompts,
            lambda batch: self._read(network, batch),
            lambda reader, _rows: self._greedily(reader),
            1,
        )
        return [one for (one,) in said]

    def _said(
        self,
        prompts: Sequence[Sequence[int]],
        read: Callable[[Sequence[Sequence[int]]], Reader],
        go_on: Callable[[Reader, Sequence[tuple[int, int]]], list[list[int]]],
        times: int,
    ) -> list[list[Completion]]:
        said: dict[int, list[Completion]] = {}
        size = max(1, ROWS_AT_ONCE // times)
        for batch in batches([len(prompt) for prompt in prompts], size, mixed=self._mixed):
            rows = [(at, number) for at in batch for number in range(times)]
            reader = read([prompts[at] for at in batch])
            for (at, _), ids in zip(rows, go_on(reader, rows), strict=True):
                said.setdefault(at, []).append(self.completion(prompts[at], ids))
        return [said[at] for at in range(len(prompts))]

    def _read(self, network: Any, prompts: Sequence[Sequence[int]], times: int = 1) -> Reader:
        """What has read `prompts`, shortest first, each of them `times` times."""
        if not self._caches:
            return Rereader(network, [one for one in prompts for _ in range(times)])
        prefixes = [
            read_prompts(network, list(group)).repeated(times) for _, group in groupby(prompts, len)
        ]
        return joined(prefixes, room=self.sampling.max_new_tokens)

    def completion(self, prompt: Sequence[int], ids: Sequence[int]) -> Completion:
        """The tokens `ids` after `prompt`."""
        return Completion(
            sequence=Continuation(ids=(*prompt, *ids), start=len(prompt)),
            text=self._chat.text(ids),
            ended=ids[-1] in self._chat.stop_ids,
        )

    def _greedily(self, reader: Reader) -> list[list[int]]:
        return continue_greedily(
            reader,
            max_new_tokens=self.sampling.max_new_tokens,
            stop_ids=self._chat.stop_ids,
        )

    def _continued(
        self,
        reader: Reader,
        rows: Sequence[tuple[int, int]],
        seeds: Sequence[int],
        first: int,
    ) -> list[list[int]]:
        def choose(logits: torch.Tensor, step: int) -> torch.Tensor:
            numbers = [draw_number(seeds[at], first + number, step) for at, number in rows]
            return torch.tensor(drawn(logits, self.sampling.distribution, numbers))

        return continue_by(
            reader,
            choose,
            max_new_tokens=self.sampling.max_new_tokens,
            stop_ids=self._chat.stop_ids,
        )

    def draw_mixed(
        self,
        network: Any,
        reference: Within,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        *,
        share: float,
        first: int,
    ) -> list[Completion]:
        """One completion of each prompt from p^(1 - share) p_ref^share, up to its scale."""
        said = []
        for at, prompt in enumerate(prompts):
            own = self._read(network, [prompt])
            with reference():
                other = self._read(network, [prompt])
            mixture = Mixture(own, other, reference, share)
            (ids,) = self._continued(mixture, [(at, 0)], seeds, first)
            said.append(self.completion(prompt, ids))
        return said


class Rereader:
    """Reads every row from its start for each token: slow, and right without a cache.

    Args:
        network: The network.
        prompts: Token ids.
    """

    def __init__(self, network: Any, prompts: Sequence[Sequence[int]]) -> None:
        self._network = network
        self._rows = [list(one) for one in prompts]
        self.logits = self._look()

    def read(self, chosen: torch.Tensor) -> torch.Tensor:
        """What the network expects after one token more of each row."""
        for row, token in zip(self._rows, chosen.tolist(), strict=True):
            row.append(token)
        return self._look()

    def _look(self) -> torch.Tensor:
        return torch.cat([self._last(torch.tensor([row])) for row in self._rows])

    def _last(self, ids: torch.Tensor) -> torch.Tensor:
        seen = self._network(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            logits_to_keep=torch.tensor([ids.shape[1] - 1]),
        )
        return seen.logits[:, -1].float()


class Mixture:
    """A geometric mixture of a policy and its reference, each with a cache of its own.

    Args:
        own: What the policy has read.
        other: What the reference has.
        reference: Makes the network the reference.
        share: Weight of the reference's log-probabilities.
    """

    def __init__(self, own: Reader, other: Reader, reference: Within, share: float) -> None:
        self._own, self._other, self._reference = own, other, reference
        self._share = share
        self.logits = self._mix(own.logits, other.logits)

    def read(self, chosen: torch.Tensor) -> torch.Tensor:
        """What the mixture expects after one token more."""
        own = self._own.read(chosen)
        with self._reference():
            other = self._other.read(chosen)
        return self._mix(own, other)

    def _mix(self, own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return own * (1.0 - self._share) + other * self._share


class Blend:
    """An arithmetic mixture of two models' probabilities, each with a cache of its own.

    Args:
        own: What the student has read.
        other: What the teacher has.
        share: The teacher's weight.
    """

    def __init__(self, own: Reader, other: Reader, share: float) -> None:
        self._own, self._other, self._share = own, other, share
        self.logits = self._blend(own.logits, other.logits)

    def read(self, chosen: torch.Tensor) -> torch.Tensor:
        """What the mixture expects after one token more, as logarithms of probabilities."""
        return self._blend(self._own.read(chosen), self._other.read(chosen))

    def _blend(self, own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        student, teacher = (torch.log_softmax(one, dim=-1) for one in (own, other))
        return mixture(teacher, student, self._share)


def tempered_log_probabilities(
    network: Any, sequence: Continuation, temperature: float
) -> torch.Tensor:
    """Log p of each token said at `temperature`, shape (tokens,), float32."""
    logits, ids = answer_logits(network, sequence)
    return -torch.nn.functional.cross_entropy(logits / temperature, ids, reduction="none")


def samples_digest(completions: Sequence[Sequence[Completion]]) -> str:
    """The first 64 bits, in hex, of the SHA-256 of all tokens said in a step (RL-8)."""
    ids = [[list(one.sequence.ids[one.sequence.start :]) for one in row] for row in completions]
    return sha256(cbor.encode(ids)).hexdigest()[:16]
