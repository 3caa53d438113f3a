"""Methods that scale the input channels of a stage before they round it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kolm_build.numerics.quantised import Scales, nearest
from kolm_build.steps.quantisation.calibration import Block, Progress, Stage, Statistics, Tokens
from kolm_build.steps.quantisation.folding import Fold
from kolm_build.steps.quantisation.results import Calibrated, Results, round_blocks
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


Found = tuple[Fold, torch.Tensor]
"""Where a scale goes, and the scale, settled: shape (columns,), float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """A method that scales the stages of a block, and then rounds them to nearest.

    Attributes:
        grids: The grid of each layer.
        find: The scale of a stage that is fed as told; None where it has no place for one.
        scales: The scales of the grids of a stage's weights.
    """

    grids: Grids
    find: Callable[[Block, Stage, Statistics], Found | None]
    scales: Callable[[Scaled], Mapping[str, Scales]]

    def quantise(
        self, network: Any, sequences: Sequence[Tokens], on_block: Progress | None
    ) -> Calibrated:
        """See the methods.

        Raises:
            InvalidRecordError: There is no place in this architecture that could take a scale.
        """
        results = round_blocks(network, sequences, self.grids, on_block, by=self._round)
        results.check_folded()
        return results.calibrated()

    def _round(self, block: Block, stages: Sequence[Stage], results: Results) -> None:
        """Scale every stage before the first is rounded: scales go into layers of other stages."""
        scaled = [self._scaled(block, stage, results) for stage in stages]
        for one in scaled:
            one.round(self.scales(one), self.grids, results)

    def _scaled(self, block: Block, stage: Stage, results: Results) -> Scaled:
        """`stage` with its scale in place, or with none where it has no place."""
        seen = block.statistics(stage)
        found = self.find(block, stage, seen)
        scale = torch.ones_like(seen.mean) if found is None else results.fold(*found)
        return Scaled(block=block, stage=stage, scale=scale, seen=seen.scaled(scale))
