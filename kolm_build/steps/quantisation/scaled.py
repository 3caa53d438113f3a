"""A stage whose input channels are scaled, ready to be rounded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from kolm_build.numerics.quantised import Scales, nearest
from kolm_build.steps.quantisation.calibration import Block, Stage, Statistics
from kolm_build.steps.quantisation.results import Results
from kolm_build.steps.quantisation.rounding import Grids


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaled:
    """A stage, and the scale of its input channels that is in place.

    Attributes:
        block: The decoder layer.
        stage: The stage.
        scale: What the columns of its weights are multiplied by, shape (columns,), float32.
        seen: What its layers are fed with the scale in place.
    """

    block: Block
    stage: Stage
    scale: torch.Tensor
    seen: Statistics

    def weights(self, grids: Grids) -> dict[str, torch.Tensor]:
        """The weights, as they are now, of the layers that are to be quantised."""
        return self.block.weights(name for name in self.stage.layers if name in grids.by_layer)

    def round(self, chosen: Mapping[str, Scales], grids: Grids, results: Results) -> None:
        """Round the layers of the stage to nearest on the scales `chosen`."""
        weights = self.weights(grids)
        plain = grids.rounded({name: one / self.scale for name, one in weights.items()})
        for name, weight in weights.items():
            matrix = nearest(weight, chosen[name])
            error = plain[name] * self.scale
            results.add(self.block, name, matrix, plain=error, seen=self.seen)
