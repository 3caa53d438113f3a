"""DELLA: drop the smaller elements of a row more often (Deep et al. 2024, arXiv:2406.11617)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from kolm_build.steps.merging.task_arithmetic import weighted_sum


@dataclass(frozen=True, slots=True, kw_only=True)
class Della:
    """Drop by MAGPRUNE, elect, fuse.

    Attributes:
        weights: Of each model.
        scale: lambda.
        density: 1 - p, p the mean drop rate.
        epsilon: How far apart the drop rates of a row's smallest and largest element are.
        elects: Whether signs are elected; else the vectors are added.
    """

    weights: Sequence[Fraction]
    scale: float
    density: Fraction
    epsilon: Fraction
    elects: bool

    @classmethod
    def elected(cls, fields: Fields, models: int) -> Self:
        """DELLA, as parameters say it."""
        return cls._parse(fields, models, elects=True)

    @classmethod
    def linear(cls, fields: Fields, models: int) -> Self:
        """DELLA without its election, as parameters say it."""
        return cls._parse(fields, models, elects=False)

    @classmethod
    def _parse(cls, fields: Fields, models: int, *, elects: bool) -> Self:
        check_models(models, least=1)
        made = cls(
            weights=read_weights(fields, models, negative=not elects),
            scale=read_scale(fields),
            density=read_density(fields, "0.5"),
            epsilon=read_share(fields, "epsilon", "0.2"),
            elects=elects,
        )
        room = 2 * min(made.density, 1 - made.density)
        if made.density < 1 and made.epsilon > room:
            raise InvalidRecordError(
                "the drop rates would leave 0 to 1",
                where="epsilon",
                expected=f"at most {float(room):g} with density {float(made.density):g}",
                actual=f"{float(made.epsilon):g}",
            )
        return made

    def merge(self, group: Group) -> torch.Tensor:
        """The base, moved by what is left of the task vectors."""
        combine = elected_mean if self.elects else weighted_sum
        return moved(group.base(), combine(self._pruned(group)) * self.scale)

    def _pruned(self, group: Group) -> Iterator[tuple[Fraction, torch.Tensor]]:
        for member, change in group.changes():
            if self.density == 1:
                yield member.weight, change
            else:
                chances = keep_chances(change, self.density, self.epsilon)
                kept = torch.bernoulli(chances, generator=group.generator(member)) != 0
                yield member.weight, rescaled(change, kept, chances)


def keep_chances(change: torch.Tensor, density: Fraction, epsilon: Fraction) -> torch.Tensor:
    """1 - p_i of each element: p_i = p_min + (epsilon / n) r_i, p_min = p - epsilon / 2.

    r_i is the element's rank in its row of n, from 0 for the largest magnitude; of equals the
    first is the larger. A row is what one index of the first dimension selects; a vector is one
    row.
    """
    rows = change.reshape(1, -1) if change.ndim < 2 else change.reshape(change.shape[0], -1)
    length = rows.shape[1]
    order = torch.sort(rows.abs(), dim=1, descending=True, stable=True).indices
    places = torch.arange(length).expand(rows.shape)
    ranks = torch.zeros_like(order).scatter_(1, order, places).to(torch.float32)
    most = float(density + epsilon / 2)  # 1 - p_min
    return torch.add(torch.full((), most), ranks, alpha=-float(epsilon / max(length, 1))).reshape(
        change.shape
    )


def rescaled(change: torch.Tensor, kept: torch.Tensor, chances: torch.Tensor) -> torch.Tensor:
    """The change's elements that stay, each divided by its 1 - p_i, and 0 for the others."""
    return torch.where(kept, change / chances, torch.zeros_like(change))
