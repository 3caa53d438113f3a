"""TIES: trim, elect signs, merge what agrees (Yadav et al. 2023, arXiv:2306.01708)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Self

import torch

from kolm_build.core.fields import Fields
from kolm_build.steps.merging.election import elected_mean
from kolm_build.steps.merging.elements import moved
from kolm_build.steps.merging.group import Group
from kolm_build.steps.merging.parameters import (
    check_models,
    read_density,
    read_scale,
    read_weights,
)
from kolm_build.steps.merging.selection import count_of, largest


@dataclass(frozen=True, slots=True, kw_only=True)
class Ties:
    """theta = theta_0 + lambda tau_m (algorithm 1).

    Attributes:
        weights: Of each model, not negative.
        scale: lambda.
        density: Share k of each task vector that trimming keeps.
    """

    weights: Sequence[Fraction]
    scale: float
    density: Fraction

    @classmethod
    def parse(cls, fields: Fields, models: int) -> Self:
        """The method as parameters say it."""
        check_models(models, least=1)
        return cls(
            weights=read_weights(fields, models),
            scale=read_scale(fields),
            density=read_density(fields, "0.2"),
        )

    def merge(self, group: Group) -> torch.Tensor:
        """The base, moved by the mean of what agrees."""
        changes = (
            (member.weight, trimmed(change, self.density)) for member, change in group.changes()
        )
        return moved(group.base(), elected_mean(changes) * self.scale)


def trimmed(change: torch.Tensor, density: Fraction) -> torch.Tensor:
    """`change` with all but its `density` largest magnitudes set to 0 (step 1)."""
    kept = largest(change, count_of(density, change.numel()))
    return torch.where(kept, change, torch.zeros_like(change))
