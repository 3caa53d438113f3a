"""How the layers that read one input are rounded: their scales, and codes column by column."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch

from kolm_build.core.quantisation import CHANNEL, Grid
from kolm_build.numerics.quantised import (
    Scales,
    decode,
    encode,
    global_scale_of,
    nearest,
    scales,
    values,
)

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grids:
    """What a model's layers are rounded to.

    Attributes:
        by_layer: The grid of each layer, by the layer's name; no other layer is quantised.
        scale_dtype: What a scale of integers or E4M3 is stored in.
        model_dtype: What the model's norms and biases are stored in.
    """

    by_layer: Mapping[str, Grid]
    scale_dtype: torch.dtype = torch.float32
    model_dtype: torch.dtype = torch.float32

    def scales(self, weights: Tensors) -> Mapping[str, Scales]:
        """The scales of layers that read one input; their NVFP4 matrices share one scale.

        Args:
            weights: The layers' weights, float32, by the layers' names.
        """
        fused = [one for name, one in weights.items() if self.by_layer[name].kind == "nvfp4"]
        shared = global_scale_of(fused) if fused else None
        return {name: self.scales_on(name, one, shared) for name, one in weights.items()}

    def scales_on(
        self, name: str, weight: torch.Tensor, global_scale: torch.Tensor | None
    ) -> Scales:
        """The scales of the layer `name`, with `global_scale` where its grid has one."""
        grid = self.by_layer[name]
        shared = global_scale if grid.kind == "nvfp4" else None
        return scales(weight, grid, dtype=self.scale_dtype, global_scale=shared)

    def rounded(self, weights: Tensors) -> Tensors:
        """The values nearest to `weights` on scales of their own."""
        return {
            name: values(nearest(weights[name], chosen))
            for name, chosen in self.scales(weights).items()
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The scales of a matrix, to round one column of it after another.

    Attributes:
        grid: What it is rounded to.
        steps: What a code is multiplied by, shape (groups, rows), float32.
        zero_points: The codes of 0, of the same shape; None for a symmetric grid.
    """

    grid: Grid
    steps: torch.Tensor
    zero_points: torch.Tensor | None

    @classmethod
    def of(cls, chosen: Scales) -> Self:
        """The columns' side of `chosen`."""
        return cls(
            grid=chosen.grid,
            steps=_turned(chosen.steps()),
            zero_points=_turned(chosen.zero_point),
        )

    def rounded(self, column: torch.Tensor, at: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The codes of column number `at`, whose weights are now `column`, and their values."""
        group = 0 if self.grid.group == CHANNEL else at // self.grid.group
        steps = self.steps[group]
        zero = None if self.zero_points is None else self.zero_points[group]
        codes = encode(column, steps, zero, self.grid)
        return codes, decode(codes, steps, zero, self.grid)


def _turned(matrix: Any) -> Any:
    return matrix if matrix is None else matrix.T.contiguous()
