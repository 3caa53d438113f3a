"""What the server makes of a round: each method's rule, its equation beside it (FED-80 on).

Every operation is one of IEEE 754's in binary64; a result is rounded to float32 once, when it is
written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kolm_build.core.decimals import parse_decimal
from kolm_build.core.federated.plan import FederationPlan
from kolm_build.steps.federated._tensors import Arrays, ServerState, named

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """What a round has brought together.

    Attributes:
        mean: The weighted mean of the survivors' updates.
        share: The same sum over the weight of all sites of the round, for what goes on when some
            are away.
        control: That of the changes of control variates; empty where there are none.
    """

    mean: Arrays
    share: Arrays
    control: Arrays


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One round as the server sees it.

    Attributes:
        plan: What the federation has agreed on.
        start: The round's adapter.
        state: What the server remembers.
        sums: What the sites sent.
    """

    plan: FederationPlan
    start: Arrays
    state: ServerState
    sums: Sums

    def number(self, name: str) -> np.float64:
        """A decimal of the plan as the nearest binary64."""
        return np.float64(float(parse_decimal(getattr(self.plan, name))))


Rule = Callable[[Turn], tuple[Arrays, Arrays]]
"""The new adapter, and what the server remembers, each tensor's kind before its name."""


def averaging(turn: Turn) -> tuple[Arrays, Arrays]:
    """X + rate * mean: FedAvg (arXiv:1602.05629, algorithm 1) where the rate is 1."""
    return _moved(turn, turn.sums.mean), {}


def momentum(turn: Turn) -> tuple[Arrays, Arrays]:
    """V = beta v + mean; x + rate * v: FedAvgM (arXiv:1909.06335, section 3.3)."""
    beta, before = turn.number("beta1"), turn.state.part("velocity", turn.start)
    velocity = {name: beta * before[name] + one for name, one in turn.sums.mean.items()}
    return _moved(turn, velocity), named("velocity", velocity)


def adaptive(second: Callable[[Turn, Array, Array], Array]) -> Rule:
    """FedOpt (arXiv:2003.00295, algorithm 2); `second` is the rule of the second moment."""

    def rule(turn: Turn) -> tuple[Arrays, Arrays]:
        beta, tau = turn.number("beta1"), turn.number("tau")
        first = turn.state.part("first", turn.start)
        variance = turn.state.part("second", turn.start, fill=float(tau * tau))
        moment, spread, step = {}, {}, {}
        for name, mean in turn.sums.mean.items():
            moment[name] = beta * first[name] + (1.0 - beta) * mean
            spread[name] = second(turn, variance[name], mean * mean)
            step[name] = moment[name] / (np.sqrt(spread[name]) + tau)
        return _moved(turn, step), {**named("first", moment), **named("second", spread)}

    return rule


def adagrad(_turn: Turn, before: Array, square: Array) -> Array:
    """V + d²."""
    return before + square


def adam(turn: Turn, before: Array, square: Array) -> Array:
    """beta2 v + (1 - beta2) d²."""
    beta = turn.number("beta2")
    return beta * before + (1.0 - beta) * square


def yogi(turn: Turn, before: Array, square: Array) -> Array:
    """V - (1 - beta2) d² sign(v - d²)."""
    beta = turn.number("beta2")
    return before - (1.0 - beta) * square * np.sign(before - square)


def scaffold(turn: Turn) -> tuple[Arrays, Arrays]:
    """X + rate * mean; c + (|S|/N) mean of changes (arXiv:1910.06378, algorithm 1)."""
    before = turn.state.part("control", turn.start)
    control = {name: before[name] + one for name, one in turn.sums.control.items()}
    return _moved(turn, turn.sums.mean), named("control", control)


def dynamic(turn: Turn) -> tuple[Arrays, Arrays]:
    """H - mu * share; x + mean - h / mu: FedDyn (arXiv:2111.04263, algorithm 1)."""
    mu, before = turn.number("mu"), turn.state.part("drift", turn.start)
    drift = {name: before[name] - mu * one for name, one in turn.sums.share.items()}
    made = {name: one + turn.sums.mean[name] - drift[name] / mu for name, one in turn.start.items()}
    return made, named("drift", drift)


def _moved(turn: Turn, step: Arrays) -> dict[str, NDArray[Any]]:
    """The adapter after `step`; tensors that the step does not name stay."""
    rate = turn.number("server_rate")
    return {
        name: one + rate * step[name] if name in step else one for name, one in turn.start.items()
    }


RULES: Mapping[str, Rule] = {
    "fed-avg": averaging,
    "fed-prox": averaging,
    "ffa-lora": averaging,
    "dp-fed-avg": averaging,
    "fed-avgm": momentum,
    "fed-adagrad": adaptive(adagrad),
    "fed-adam": adaptive(adam),
    "fed-yogi": adaptive(yogi),
    "scaffold": scaffold,
    "fed-dyn": dynamic,
}
