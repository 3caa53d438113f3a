"""``bnpo``: beta normalisation policy optimisation (arXiv:2506.02864, section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Context, Decimal, localcontext
from typing import Self

import torch

from kolm_build.core.fields import Fields
from kolm_build.errors import StepFailedError
from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._policy import (
    PolicyObjective,
    PolicyParams,
    Rollout,
    deviation,
    mean,
    scalars,
)


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


GRPO_SHAPE = 1.5
"""Both parameters of the density that makes the normalisation GRPO's, up to a factor."""

DIGITS = Context(prec=40)
"""Decimal arithmetic, logarithms among it, that is the same on every machine."""


class Bnpo(PolicyObjective):
    """(r - p) / f(p), p the mean reward of a prompt and f a beta density fitted to the step.

    Made for rewards from 0 to 1. With f = 1 it is REINFORCE with a baseline, and with both
    parameters 3/2 GRPO up to a factor.
    """

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        return cls(PolicyParams.take(fields))

    def advantages(self, rollouts: Sequence[Rollout]) -> Sequence[Sequence[torch.Tensor]]:
        """The density's parameters are 1 + a / 3 and 1 + b / 3, a and b by moments."""
        for one in rollouts:
            _check(one)
        middles = [mean(one.rewards) for one in rollouts]
        alpha, beta = shapes(middles)
        return [
            scalars(scaled(one.rewards, middle, alpha, beta))
            for one, middle in zip(rollouts, middles, strict=True)
        ]


def _check(rollout: Rollout) -> None:
    for number, reward in enumerate(rollout.rewards, 1):
        if not 0.0 <= reward <= 1.0:
            raise StepFailedError(
                "a reward that is no share of 1",
                where=f"{rollout.example.where}, completion {number}",
                expected="from 0 to 1",
                actual=repr(reward),
                advice="Scale the rewards, or use grpo.",
            )


def shapes(middles: Sequence[float]) -> tuple[float, float]:
    """1 + a / 3 and 1 + b / 3, where Beta(a, b) has the mean and variance of `middles`.

    Where no such density exists, as with a single prompt or equal means, both are GRPO's.
    """
    middle, spread = mean(middles), deviation(middles, less=0)
    variance = spread * spread
    room = middle * (1.0 - middle)
    if not 0.0 < variance < room:
        return GRPO_SHAPE, GRPO_SHAPE
    size = room / variance - 1.0
    return 1.0 + size * middle / 3.0, 1.0 + size * (1.0 - middle) / 3.0


def scaled(rewards: Sequence[float], middle: float, alpha: float, beta: float) -> list[float]:
    """(r - p) / f(p); 0 where p is not between 0 and 1, for then all rewards are equal."""
    if not 0.0 < middle < 1.0:
        return [0.0 for _ in rewards]
    height = density(middle, alpha, beta)
    return [(one - middle) / height for one in rewards]


def density(x: float, alpha: float, beta: float) -> float:
    """The density of Beta(alpha, beta) at `x`, 0 < x < 1; rounded to binary64 in the end."""
    with localcontext(DIGITS):
        one, a, b = Decimal(x), Decimal(alpha), Decimal(beta)
        scale = log_gamma(a + b) - log_gamma(a) - log_gamma(b)
        return float((scale + (a - 1) * one.ln() + (b - 1) * (1 - one).ln()).exp())


def log_gamma(x: Decimal) -> Decimal:
    """Log of the gamma function of `x` > 0: Stirling's series above 30, and steps down to `x`."""
    below = Decimal(0)
    while x < 30:
        below += x.ln()
        x += 1
    half = Decimal("0.5")
    found = (x - half) * x.ln() - x + half * (2 * _PI).ln() - below
    for top, bottom, power in _STIRLING:
        found += Decimal(top) / (bottom * x**power)
    return found


_PI = Decimal("3.141592653589793238462643383279502884197")
_STIRLING = ((1, 12, 1), (-1, 360, 3), (1, 1260, 5), (-1, 1680, 7), (1, 1188, 9),
             (-691, 360360, 11), (1, 156, 13))  # fmt: skip

TAKE: Take = Bnpo.take
