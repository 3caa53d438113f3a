"""DARE: drop task vectors' elements at random and rescale the rest (arXiv:2311.03099)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from kolm_build.steps.merging.task_arithmetic import weighted_sum


@dataclass(frozen=True, slots=True, kw_only=True)
class Dare:
    """Task vectors are thinned out, then combined.

    Attributes:
        weights: Of each model.
        scale: What the combined task vector is multiplied by.
        density: 1 - p, p the paper's drop rate.
        elects: Whether signs are elected, as TIES does; else the vectors are added.
    """

    weights: Sequence[Fraction]
    scale: float
    density: Fraction
    elects: bool

    @classmethod
    def linear(cls, fields: Fields, models: int) -> Self:
        """DARE before task arithmetic, as parameters say it."""
        return cls._parse(fields, models, elects=False)

    @classmethod
    def ties(cls, fields: Fields, models: int) -> Self:
        """DARE in the place of trimming in TIES, as parameters say it."""
        return cls._parse(fields, models, elects=True)

    @classmethod
    def _parse(cls, fields: Fields, models: int, *, elects: bool) -> Self:
        check_models(models, least=1)
        return cls(
            weights=read_weights(fields, models, negative=not elects),
            scale=read_scale(fields),
            density=read_density(fields, "0.5"),
            elects=elects,
        )

    def merge(self, group: Group) -> torch.Tensor:
        """The base, moved by what is left of the task vectors."""
        combine = elected_mean if self.elects else weighted_sum
        return moved(group.base(), combine(self._thinned(group)) * self.scale)

    def _thinned(self, group: Group) -> Iterator[tuple[Fraction, torch.Tensor]]:
        for member, change in group.changes():
            if self.density == 1:
                yield member.weight, change
            else:
                kept = drawn(change, self.density, group.generator(member))
                yield member.weight, thinned(change, kept, self.density)


def drawn(change: torch.Tensor, density: Fraction, generator: torch.Generator) -> torch.Tensor:
    """Which elements stay: m = 1 - Bernoulli(p)."""
    return torch.empty_like(change).bernoulli_(float(density), generator=generator) != 0


def thinned(change: torch.Tensor, kept: torch.Tensor, density: Fraction) -> torch.Tensor:
    """The change's elements that stay, divided by 1 - p, and 0 for the others."""
    return torch.where(kept, change / float(density), torch.zeros_like(change))
