"""Objectives that compare a step's rows with one another in the order of their values.

Such a loss is one of all rows' log-probabilities at once. It is made in two passes: before the
step, without gradients, its derivative by each row's value is found; a row's share is then that
factor times its value, so that the gradients are those of the whole.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch.nn.functional import logsigmoid

from kolm_build.core.fields import Fields
from kolm_build.steps._objective import Moment, Share
from kolm_build.steps.objectives._pairs import (
    PairExample,
    PairRows,
    Side,
    take_beta,
    take_smoothing,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What a row knows of its step.

    Attributes:
        chosen: The loss' derivative by log p of the chosen answer.
        rejected: That by log p of the rejected one.
        loss: The row's part of the loss.
    """

    chosen: torch.Tensor
    rejected: torch.Tensor
    loss: torch.Tensor


class SortedObjective(PairRows[Part]):
    """The mean of -log s(beta delta) over the pairs of two sorted lists of values (AOT).

    Args:
        beta: How close the policy is held to the reference.
        label_smoothing: The share of pairs that are thought to be swapped.
    """

    def __init__(self, beta: float, label_smoothing: float) -> None:
        self.beta = beta
        self.label_smoothing = label_smoothing

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        return cls(take_beta(fields), take_smoothing(fields, "0"))

    def prepare(
        self, network: Any, examples: Sequence[PairExample], moment: Moment
    ) -> Sequence[Part]:
        """Each row's factors."""
        del moment
        return self.parts([self.sides(network, one) for one in examples])

    def share(self, network: Any, example: PairExample, context: Part) -> Share:
        """The row's values times its factors; as a figure, its part of the loss."""
        chosen, rejected = self.sides(network, example)
        linear = context.chosen * chosen.log_p + context.rejected * rejected.log_p
        return Share(
            loss=linear + (context.loss - linear).detach(),
            figures=self.figures_of(chosen, rejected),
        )

    @abstractmethod
    def parts(self, sides: Sequence[tuple[Side, Side]]) -> Sequence[Part]:
        """What each row adds to the loss and to its derivatives."""

    def pairwise(self, delta: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of one pair of sorted values, and its derivative by `delta`, over `count`."""
        scaled, noise = self.beta * delta, self.label_smoothing
        loss = -(1 - noise) * logsigmoid(scaled) - noise * logsigmoid(-scaled)
        slope = noise * torch.sigmoid(scaled) - (1 - noise) * torch.sigmoid(-scaled)
        return loss / count, self.beta * slope / count


def ranked(values: Sequence[torch.Tensor]) -> list[int]:
    """The indices of `values`, ascending; equal ones in the order in which they stand."""
    return sorted(range(len(values)), key=lambda at: values[at].item())
