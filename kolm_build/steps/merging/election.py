"""Electing signs, and the mean of the changes that agree (arXiv:2306.01708, algorithm 1)."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

import torch


def elected_mean(changes: Iterable[tuple[Fraction, torch.Tensor]]) -> torch.Tensor:
    """The weighted mean of the changes that have the elected sign, 0 where there is none.

    The elected sign is that of the weighted sum of all changes: gamma_m = sgn(sum_t tau_t), and
    tau_m = (1 / |A|) sum over t in A of tau_t, where A are those with sgn(tau_t) = gamma_m.
    Positive and negative changes are added apart, so that one pass is enough.

    Args:
        changes: At least one weight, not negative, with its change, float32.

    Determinism:
        Sums are in the order of `changes` (MERGE-11).
    """
    up, down = _Side(), _Side()
    for weight, change in changes:
        up.add(weight, change.clamp(min=0))
        down.add(weight, change.clamp(max=0))
    elected = up.total + down.total
    return torch.where(
        elected > 0, up.mean(), torch.where(elected < 0, down.mean(), torch.zeros_like(elected))
    )


class _Side:
    """The changes of one sign: their weighted sum, and the sum of their weights."""

    __slots__ = ("held", "total")

    def __init__(self) -> None:
        self.total = torch.zeros(())
        self.held = torch.zeros(())

    def add(self, weight: Fraction, change: torch.Tensor) -> None:
        scalar = float(weight)
        self.total = torch.add(self.total, change, alpha=scalar)
        self.held = torch.add(self.held, (change != 0).to(torch.float32), alpha=scalar)

    def mean(self) -> torch.Tensor:
        return self.total / torch.where(self.held == 0, torch.ones_like(self.held), self.held)
