"""Narrower scales: a few large weights are cut off where all the others gain more."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from kolm_build.core.quantisation import CHANNEL
from kolm_build.numerics.quantised import Scales, nearest, values
from kolm_build.steps.quantisation.rounding import Grids

SHARES = tuple(1.0 - 0.05 * at for at in range(9))
"""What a group's range is tried to be multiplied by, the whole one first."""


def clipped(
    grids: Grids, weights: dict[str, torch.Tensor], gram: torch.Tensor
) -> dict[str, Scales]:
    """The scales of layers that read one input, each group's range cut where that is better.

    A group is judged by itself, by the squared outputs of its own columns.

    Args:
        grids: The grids.
        weights: The layers' weights, float32, by their names.
        gram: Sum of x x' over the tokens, shape (columns, columns), float32.
    """
    whole = grids.scales(weights)
    return {name: _clipped(grids, name, weights[name], whole[name], gram) for name in weights}


def _clipped(
    grids: Grids, name: str, weight: torch.Tensor, whole: Scales, gram: torch.Tensor
) -> Scales:
    blocks = _diagonal_blocks(gram, whole.grid.group)
    best, least = whole, _errors(weight, whole, blocks)
    for share in SHARES[1:]:
        tried = grids.scales_on(name, weight * share, whole.global_scale)
        errors = _errors(weight, tried, blocks)
        better = errors < least
        least = torch.where(better, errors, least)
        best = _chosen(better, tried, best)
    return best


def _errors(weight: torch.Tensor, chosen: Scales, blocks: torch.Tensor) -> torch.Tensor:
    """The squared error of each group's own outputs, shape (rows, groups)."""
    wrong = weight - values(nearest(weight, chosen))
    groups = wrong.reshape(len(wrong), len(blocks), -1).transpose(0, 1)
    return ((groups @ blocks) * groups).sum(dim=2).T


def _diagonal_blocks(gram: torch.Tensor, group: int) -> torch.Tensor:
    """The blocks of `group` columns along the diagonal, shape (groups, group, group)."""
    size = len(gram) if group == CHANNEL else group
    return torch.stack([gram[at : at + size, at : at + size] for at in range(0, len(gram), size)])


def _chosen(better: torch.Tensor, new: Scales, old: Scales) -> Scales:
    """The scales of `new` where `better`, those of `old` elsewhere."""
    return replace(
        old,
        scale=torch.where(better, new.scale, old.scale),
        zero_point=_where(better, new.zero_point, old.zero_point),
    )


def _where(better: torch.Tensor, new: Any, old: Any) -> Any:
    return old if old is None else torch.where(better, new, old)
