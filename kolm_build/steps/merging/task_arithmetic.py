"""Task arithmetic: the base plus a weighted sum of task vectors (arXiv:2212.04089)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Self

import torch

from kolm_build.core.fields import Fields
from kolm_build.steps.merging.elements import moved
from kolm_build.steps.merging.group import Group
from kolm_build.steps.merging.parameters import check_models, read_scale, read_weights


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskArithmetic:
    """theta = theta_0 + lambda sum_i w_i tau_i, with tau_i = theta_i - theta_0 (section 2).

    Attributes:
        weights: Of each model; a negative one makes the merged model forget its task.
        scale: lambda.
    """

    weights: Sequence[Fraction]
    scale: float

    @classmethod
    def parse(cls, fields: Fields, models: int) -> Self:
        """The method as parameters say it."""
        check_models(models, least=1)
        return cls(weights=read_weights(fields, models, negative=True), scale=read_scale(fields))

    def merge(self, group: Group) -> torch.Tensor:
        """The base, moved by the scaled sum."""
        changes = ((member.weight, change) for member, change in group.changes())
        return moved(group.base(), weighted_sum(changes) * self.scale)


def weighted_sum(changes: Iterable[tuple[Fraction, torch.Tensor]]) -> torch.Tensor:
    """sum_i w_i tau_i, in the order of `changes`, from +0; each product and sum is rounded."""
    total = torch.zeros(())
    for weight, change in changes:
        total = torch.add(total, change, alpha=float(weight))
    return total
