"""How AdaLoRA shares a budget of ranks out (arXiv:2303.10512; ADPT-40)."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The ranks that all layers may have together, by optimiser step (a cubic schedule).

    Attributes:
        first: At the start.
        last: In the end.
        warmup: Steps in which it stays as it was at the start.
        cooldown: Steps at the end in which it stays as it is in the end.
        steps: All optimiser steps.
        interval: Steps between two allocations.
    """

    first: int
    last: int
    warmup: int
    cooldown: int
    steps: int
    interval: int

    def at(self, step: int) -> int:
        """The budget of `step`, from 1: last + floor((first - last) left^3), in whole numbers."""
        falling = self.steps - self.cooldown - self.warmup
        left = falling - (step - self.warmup)
        if step <= self.warmup:
            return self.first
        if left <= 0:
            return self.last
        return self.last + (self.first - self.last) * left**3 // falling**3

    def allocates(self, step: int) -> bool:
        """Whether singular values are masked after `step`."""
        if step <= self.warmup:
            return False
        return step > self.steps - self.cooldown or (step - self.warmup) % self.interval == 0


SENSITIVITY, UNCERTAINTY = "sensitivity", "uncertainty"
"""The two means of a parameter, in the optimiser's state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Importance:
    """Smoothed sensitivity times uncertainty of every trained number (its section on importance).

    Attributes:
        beta1: Decay of the sensitivity's mean.
        beta2: Decay of the uncertainty's mean.
    """

    beta1: float
    beta2: float

    def note(
        self,
        state: MutableMapping[str, torch.Tensor],
        parameter: torch.Tensor,
        gradient: torch.Tensor,
    ) -> None:
        """Take the gradient of one optimiser step into the `state` of `parameter`."""
        zero = torch.zeros_like(gradient)
        now = (parameter.detach() * gradient).abs()
        mean = self.beta1 * state.get(SENSITIVITY, zero) + (1 - self.beta1) * now
        apart = (now - mean).abs()
        state[SENSITIVITY] = mean
        state[UNCERTAINTY] = self.beta2 * state.get(UNCERTAINTY, zero) + (1 - self.beta2) * apart

    @staticmethod
    def of(state: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The importance of every element."""
        return state[SENSITIVITY] * state[UNCERTAINTY]


def triplet_scores(values: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """The importance of each rank of a layer.

    Args:
        values: Importance of the singular values, shape (rank, 1).
        down: Importance of the right vectors, shape (rank, inputs).
        up: Importance of the left vectors, shape (outputs, rank).

    Returns:
        Shape (rank,).
    """
    return values[:, 0] + down.mean(dim=1) + up.mean(dim=0)


def kept(scores: Mapping[str, torch.Tensor], budget: int) -> Mapping[str, torch.Tensor]:
    """Which ranks of each layer stay: the `budget` most important of all layers.

    Of equal ones the first stays, layers by name and ranks by number.

    Returns:
        Booleans, shape (rank,), by layer.
    """
    names: Sequence[str] = sorted(scores)
    whole = torch.cat([scores[name] for name in names])
    order = torch.argsort(whole, descending=True, stable=True)
    mask = torch.zeros(len(whole), dtype=torch.bool)
    mask[order[:budget]] = True
    sizes = [len(scores[name]) for name in names]
    return dict(zip(names, mask.split(sizes), strict=True))
