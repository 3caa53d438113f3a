"""Model Breadcrumbs: task vectors without outliers and trifles (arXiv:2312.06795)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Self

import torch

from kolm_build.core.fields import Fields
from kolm_build.errors import InvalidRecordError
from kolm_build.steps.merging.election import elected_mean
from kolm_build.steps.merging.elements import moved
from kolm_build.steps.merging.group import Group
from kolm_build.steps.merging.parameters import (
    check_models,
    read_density,
    read_scale,
    read_share,
    read_weights,
)
from kolm_build.steps.merging.selection import count_of, largest
from kolm_build.steps.merging.task_arithmetic import weighted_sum


@dataclass(frozen=True, slots=True, kw_only=True)
class Breadcrumbs:
    """theta = theta_0 + alpha sum_i w_i (m_i * tau_i), the masks m layer by layer.

    Attributes:
        weights: Of each model.
        scale: alpha.
        density: Share of each task vector that is kept.
        gamma: Share, the largest magnitudes, that is left out; the smallest 1 - density - gamma
            are, too.
        elects: Whether signs are elected, as TIES does; else the vectors are added.
    """

    weights: Sequence[Fraction]
    scale: float
    density: Fraction
    gamma: Fraction
    elects: bool

    @classmethod
    def linear(cls, fields: Fields, models: int) -> Self:
        """Breadcrumbs, as parameters say it."""
        return cls._parse(fields, models, elects=False)

    @classmethod
    def ties(cls, fields: Fields, models: int) -> Self:
        """Breadcrumbs in the place of trimming in TIES, as parameters say it."""
        return cls._parse(fields, models, elects=True)

    @classmethod
    def _parse(cls, fields: Fields, models: int, *, elects: bool) -> Self:
        check_models(models, least=1)
        made = cls(
            weights=read_weights(fields, models, negative=not elects),
            scale=read_scale(fields),
            density=read_density(fields, "0.9"),
            gamma=read_share(fields, "gamma", "0.01"),
            elects=elects,
        )
        if made.density + made.gamma > 1:
            raise InvalidRecordError(
                "density and gamma together are more than all",
                where="gamma",
                expected=f"at most {float(1 - made.density):g}",
                actual=f"{float(made.gamma):g}",
            )
        return made

    def merge(self, group: Group) -> torch.Tensor:
        """The base, moved by what the masks leave."""
        changes = (
            (member.weight, masked(change, self.density, self.gamma))
            for member, change in group.changes()
        )
        combine = elected_mean if self.elects else weighted_sum
        return moved(group.base(), combine(changes) * self.scale)


def masked(change: torch.Tensor, density: Fraction, gamma: Fraction) -> torch.Tensor:
    """`change` with its `gamma` largest magnitudes, and all but `density` below them, set to 0."""
    outliers = int(gamma * change.numel())
    kept = largest(change, outliers + count_of(density, change.numel()))
    kept &= ~largest(change, outliers)
    return torch.where(kept, change, torch.zeros_like(change))
