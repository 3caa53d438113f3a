"""Model Stock: how far to go from the base to the mean (Jang et al. 2024, arXiv:2403.19522)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from typing import Self

import torch

from kolm_build.core.fields import Fields
from kolm_build.steps.merging.elements import between
from kolm_build.steps.merging.geometry import cosine, direction
from kolm_build.steps.merging.group import Group
from kolm_build.steps.merging.parameters import check_models, equal_weights
from kolm_build.steps.merging.soup import mean


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStock:
    """w_H = t w_avg + (1 - t) w_0, with t = N cos / (1 + (N - 1) cos).

    Attributes:
        weights: 1 for each model.
    """

    weights: Sequence[Fraction]

    @classmethod
    def parse(cls, fields: Fields, models: int) -> Self:
        """The method as parameters say it: it has none."""
        del fields
        check_models(models, least=2)
        return cls(weights=equal_weights(models))

    def merge(self, group: Group) -> torch.Tensor:
        """The point between the base and the mean that is nearest to the models' centre."""
        share = ratio(_mean_cosine(group), len(group.members))
        return between(group.base(), mean(group.members), share)


def ratio(cosine: float, models: int) -> float:
    """T of `models` models between whose task vectors the angle has the cosine `cosine`.

    0 where the cosine is not positive: opposed task vectors have no direction in common (MERGE-14).
    """
    return models * cosine / (1 + (models - 1) * cosine) if cosine > 0 else 0.0


def _mean_cosine(group: Group) -> float:
    """The mean of the cosines of all pairs of task vectors, pairs in the members' order."""
    directions = [direction(change) for _, change in group.changes()]
    cosines = [cosine(one, other) for one, other in combinations(directions, 2)]
    total = 0.0
    for one in cosines:
        total += one
    return total / len(cosines)
