"""What objectives over pairs of answers share: rows, log-probabilities, the reference's."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import torch

from kolm_build.core.fields import Fields
from kolm_build.steps._bounds import decimal
from kolm_build.steps._conversations import Pair, read_pairs
from kolm_build.steps._given import Given
from kolm_build.steps._objective import Moment, Objective, Share
from kolm_build.steps._sequences import Continuation, Tokeniser, token_log_probabilities

C = TypeVar("C")


@dataclass(frozen=True, slots=True, kw_only=True)
class PairExample:
    """Two answers to one prompt, as token ids.

    Attributes:
        number: The row's number, from 0.
        chosen: The prompt and the answer that was preferred.
        rejected: The prompt and the other answer.
        margin: By how much it was preferred; 0 where the row does not say.
    """

    number: int
    chosen: Continuation
    rejected: Continuation
    margin: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """The log-probabilities of one answer.

    Attributes:
        policy: log p of each of its tokens, shape (tokens,).
        reference: The same of the model as the stage began, without gradients; zeros for an
            objective without a reference.
    """

    policy: torch.Tensor
    reference: torch.Tensor

    @property
    def log_p(self) -> torch.Tensor:
        """Log p of the answer, shape ()."""
        return self.policy.sum()

    @property
    def mean_log_p(self) -> torch.Tensor:
        """Log p of the answer over its number of tokens, shape ()."""
        return self.policy.sum() / len(self.policy)

    @property
    def ratio(self) -> torch.Tensor:
        """Log (p / p_ref) of the answer, shape ()."""
        return self.policy.sum() - self.reference.sum()

    @property
    def mean_ratio(self) -> torch.Tensor:
        """`ratio` over the answer's number of tokens, shape ()."""
        return self.ratio / len(self.policy)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSize:
    """What a row's share of a step depends on.

    Attributes:
        rows: Rows of the step.
        chosen_tokens: Tokens of their chosen answers.
    """

    rows: int
    chosen_tokens: int


def pair_examples(given: Given) -> list[PairExample]:
    """Both answers of every row."""
    return [_example(given.tokens, at, row) for at, row in enumerate(read_pairs(given.rows()))]


def pair_columns(examples: Sequence[PairExample]) -> dict[str, list[list[int]]]:
    """Token ids and labels of both answers."""
    return {
        "chosen_ids": [list(one.chosen.ids) for one in examples],
        "chosen_labels": [one.chosen.labels for one in examples],
        "rejected_ids": [list(one.rejected.ids) for one in examples],
        "rejected_labels": [one.rejected.labels for one in examples],
    }


class PairRows(Objective[PairExample, C]):
    """Pairs of answers and their log-probabilities; what is made of them is another's to say.

    The reference is the model as the stage begins, and its log-probabilities are computed once,
    before the first step; an objective without a reference says so.
    """

    figures = ("margin", "accuracy")
    uses_reference = True

    def examples(self, given: Given) -> Sequence[PairExample]:
        """Both answers of every row."""
        return pair_examples(given)

    def columns(self, examples: Sequence[PairExample]) -> Mapping[str, Sequence[Sequence[int]]]:
        """Token ids and labels of both answers."""
        return pair_columns(examples)

    def start(self, network: Any, examples: Sequence[PairExample]) -> None:
        """Note the reference's log-probabilities."""
        network.eval()
        with torch.no_grad():
            self._reference = [
                (
                    token_log_probabilities(network, one.chosen),
                    token_log_probabilities(network, one.rejected),
                )
                for one in (examples if self.uses_reference else ())
            ]

    def sides(self, network: Any, example: PairExample) -> tuple[Side, Side]:
        """What `network` says of the chosen and of the rejected answer."""
        policies = [
            token_log_probabilities(network, one) for one in (example.chosen, example.rejected)
        ]
        references = (
            self._reference[example.number]
            if self.uses_reference
            else [torch.zeros_like(one) for one in policies]
        )
        chosen, rejected = (
            Side(policy=policy, reference=reference)
            for policy, reference in zip(policies, references, strict=True)
        )
        return chosen, rejected

    def margin(self, chosen: Side, rejected: Side) -> torch.Tensor:
        """By how much the policy prefers the chosen answer more than the reference does."""
        return chosen.ratio - rejected.ratio

    def figures_of(self, chosen: Side, rejected: Side) -> tuple[torch.Tensor, torch.Tensor]:
        """The figures of one row."""
        margin = self.margin(chosen, rejected).detach()
        return margin, (margin > 0).float()


class PairObjective(PairRows[StepSize]):
    """The mean over a step's rows of a loss of the log-probabilities of the two answers.

    With `nll_weight` that many times the mean negative log-likelihood of the chosen answers' tokens
    is added.
    """

    nll_weight = 0.0

    def prepare(
        self, network: Any, examples: Sequence[PairExample], moment: Moment
    ) -> Sequence[StepSize]:
        """The size of the step."""
        del network, moment
        size = StepSize(
            rows=len(examples), chosen_tokens=sum(one.chosen.tokens for one in examples)
        )
        return [size] * len(examples)

    def share(self, network: Any, example: PairExample, context: StepSize) -> Share:
        """The row's part of the mean."""
        chosen, rejected = self.sides(network, example)
        loss = self.loss(chosen, rejected, example) / context.rows
        if self.nll_weight:
            loss = loss - self.nll_weight * (chosen.log_p / context.chosen_tokens)
        return Share(loss=loss, figures=self.figures_of(chosen, rejected))

    @abstractmethod
    def loss(self, chosen: Side, rejected: Side, example: PairExample) -> torch.Tensor:
        """The loss of one row, shape ()."""


class BetaObjective(PairObjective):
    """An objective over pairs with one parameter.

    Args:
        beta: How close the policy is held to the reference.
    """

    beta_default = "0.1"

    def __init__(self, beta: float) -> None:
        self.beta = beta

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        return cls(take_beta(fields, cls.beta_default))


class SmoothedObjective(PairObjective):
    """An objective over pairs of which some may be swapped.

    Args:
        beta: How close the policy is held to the reference.
        label_smoothing: The share of pairs that are thought to be swapped.
    """

    smoothing_default = "0.1"

    def __init__(self, beta: float, label_smoothing: float) -> None:
        self.beta = beta
        self.label_smoothing = label_smoothing

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        return cls(take_beta(fields), take_smoothing(fields, cls.smoothing_default))


def take_beta(fields: Fields, default: str = "0.1") -> float:
    """The parameter ``beta``."""
    return decimal(fields, "beta", default, least=0.0, most=100.0)


def take_smoothing(fields: Fields, default: str) -> float:
    """The parameter ``label_smoothing``: the share of pairs that are thought to be swapped."""
    return decimal(fields, "label_smoothing", default, least=0.0, most=0.49)


def _example(tokens: Tokeniser, at: int, row: Pair) -> PairExample:
    where = f"row {at + 1} ({row.id})"
    return PairExample(
        number=at,
        chosen=tokens.sequence(row.messages, row.chosen, f"{where}, chosen"),
        rejected=tokens.sequence(row.messages, row.rejected, f"{where}, rejected"),
        margin=float(row.margin or "0"),
    )
