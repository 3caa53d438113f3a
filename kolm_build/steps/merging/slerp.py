"""Spherical interpolation of two models (Shoemake, SIGGRAPH 1985)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Self

import torch

from kolm_build.core.fields import Fields
from kolm_build.steps.merging.arc import arc_shares
from kolm_build.steps.merging.elements import between
from kolm_build.steps.merging.geometry import direction, length
from kolm_build.steps.merging.group import Group
from kolm_build.steps.merging.parameters import check_models, read_share

_MOST_CHORD = 1.99975
"""Beyond it the directions are opposite but for 0.0005 of a cosine, and no arc is the shortest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slerp:
    """sin((1 - t) a) / sin(a) theta_1 + sin(t a) / sin(a) theta_2, a the angle between them.

    Attributes:
        weights: 1 - t and t.
    """

    weights: Sequence[Fraction]

    @classmethod
    def parse(cls, fields: Fields, models: int) -> Self:
        """The method as parameters say it."""
        check_models(models, least=2, most=2)
        share = read_share(fields, "t", "0.5")
        return cls(weights=(1 - share, share))

    def merge(self, group: Group) -> torch.Tensor:
        """The tensor between the two members'; the base takes no part."""
        first, second = group.members
        return interpolated(first.read(), second.read(), second.weight)


def interpolated(first: torch.Tensor, second: torch.Tensor, share: Fraction) -> torch.Tensor:
    """`share` of the way from `first` to `second` along the arc (MERGE-13).

    Along the line where there is no arc: a tensor is 0, or their directions are the same or
    opposite.
    """
    one, other = direction(first), direction(second)
    if share in (0, 1) or one is None or other is None:
        return between(first, second, float(share))
    chord, across = length(one - other), length(one + other)
    if chord == 0 or across == 0 or chord > _MOST_CHORD:
        return between(first, second, float(share))
    left, right = arc_shares(chord, across, share)
    return first * left + second * right
