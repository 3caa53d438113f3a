"""Model soup: the weighted mean of models (Wortsman et al. 2022, arXiv:2203.05482)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Self

import torch

from kolm_build.core.fields import Fields
from kolm_build.steps.merging.elements import moved
from kolm_build.steps.merging.group import Group, Member
from kolm_build.steps.merging.parameters import check_models, read_weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Soup:
    """theta = sum_i w_i theta_i / sum_i w_i; the uniform soup of the paper where all w are equal.

    Attributes:
        weights: Of each model, not negative.
    """

    weights: Sequence[Fraction]

    @classmethod
    def parse(cls, fields: Fields, models: int) -> Self:
        """The method as parameters say it."""
        check_models(models, least=1)
        return cls(weights=read_weights(fields, models))

    def merge(self, group: Group) -> torch.Tensor:
        """The mean of the members' tensors; the base takes no part."""
        return mean(group.members)


def mean(members: Sequence[Member]) -> torch.Tensor:
    """The weighted mean of `members`: the first plus the mean distance of all from it (MERGE-8).

    So the mean of equal tensors is that tensor to the bit.
    """
    whole = sum(member.weight for member in members)
    first = members[0].read()
    change = torch.zeros_like(first)
    for member in members[1:]:
        change.add_(member.read().sub_(first), alpha=float(member.weight / whole))
    return moved(first, change)
