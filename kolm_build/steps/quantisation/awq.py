"""AWQ: input channels that carry much are scaled up before grids, and down before the layer.

Source: arXiv:2306.00978. The scale of a channel is its mean magnitude to a power; the power is
searched by the squared error of the outputs. Then each group's range is cut where that helps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from kolm_build.numerics.quantised import Scales
from kolm_build.steps.quantisation.calibration import Block, Progress, Stage, Statistics, Tokens
from kolm_build.steps.quantisation.clipping import clipped
from kolm_build.steps.quantisation.folding import Fold
from kolm_build.steps.quantisation.results import Calibrated, squared_outputs
from kolm_build.steps.quantisation.rounding import Grids
from kolm_build.steps.quantisation.scaled import Found, Scaled, Scaling

POWERS = 20
"""How many powers are tried, from 0 up, below 1."""

_LEAST_MEAN = 1e-4


def quantise(
    network: Any,
    sequences: Sequence[Tokens],
    grids: Grids,
    *,
    powers: int = POWERS,
    on_block: Progress | None = None,
) -> Calibrated:
    """The linear layers that `grids` names, scaled by AWQ and rounded to nearest.

    Args:
        network: A causal language model of transformers; it is not changed.
        sequences: What it is calibrated with.
        grids: The grid of each layer.
        powers: How many powers are tried, 0 among them.
        on_block: Is told of every decoder layer that is done.

    Raises:
        InvalidDataError: A layer is never reached by the calibration rows.
        InvalidRecordError: There is no place in this architecture that could take a scale.
        NotFiniteError: A layer's inputs are not finite.

    Determinism:
        Bitwise the same on every machine under `portable-1`.
    """

    def find(block: Block, stage: Stage, seen: Statistics) -> Found | None:
        fold = Fold.of_norm(block, stage, grids) or Fold.of_linear(block, stage, grids)
        if fold is None:
            return None
        return fold, best_scale(fold, block.weights(stage.layers), seen, grids, powers)

    def scales(one: Scaled) -> Mapping[str, Scales]:
        return clipped(grids, one.weights(grids), one.seen.gram32())

    return Scaling(grids=grids, find=find, scales=scales).quantise(network, sequences, on_block)


def best_scale(
    fold: Fold,
    weights: Mapping[str, torch.Tensor],
    seen: Statistics,
    grids: Grids,
    powers: int,
) -> torch.Tensor:
    """The scale, shape (columns,), float32, with the least squared error; of equals the first."""
    gram = seen.gram32()
    best, least = torch.ones_like(seen.mean), None
    for at in range(powers):
        scale = fold.settled(scale_of(seen.mean, at / powers))
        rounded = grids.rounded({name: one * scale for name, one in weights.items()})
        loss = sum(
            float(squared_outputs(rounded[name] / scale - one, gram).sum())
            for name, one in weights.items()
        )
        if least is None or loss < least:
            best, least = scale, loss
    return best


def scale_of(mean: torch.Tensor, power: float) -> torch.Tensor:
    """`mean` to `power`, its largest and least entries put around 1; equal ones give all 1."""
    scale = mean.clamp_min(_LEAST_MEAN).pow(power)
    return scale / (scale.amax() * scale.amin()).sqrt()
