"""Rounding to nearest with calibration: only what the layers are fed is looked at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from kolm_build.steps.quantisation.calibration import (
    Block,
    Progress,
    Stage,
    Tokens,
    check_reached,
    walk,
)
from kolm_build.steps.quantisation.results import Calibrated, Results
from kolm_build.steps.quantisation.rounding import Grids
from kolm_build.steps.quantisation.scaled import Scaled


def quantise(
    network: Any,
    sequences: Sequence[Tokens],
    grids: Grids,
    on_block: Progress | None = None,
) -> Calibrated:
    """The linear layers that `grids` names, rounded to nearest, and the range of their inputs.

    Args:
        network: A causal language model of transformers; it is not changed.
        sequences: What it is calibrated with.
        grids: The grid of each layer.
        on_block: Is told of every decoder layer that is done.

    Raises:
        InvalidDataError: A layer is never reached by the calibration rows.
        NotFiniteError: A layer's inputs are not finite.

    Determinism:
        Bitwise the same on every machine under `portable-1`.
    """
    results = Results()
    for block in walk(network, sequences, on_block):
        for stage in block.stages:
            _round(block, stage, grids, results)
    check_reached(network, tuple(grids.by_layer), tuple(results.quantised))
    return results.calibrated()


def _round(block: Block, stage: Stage, grids: Grids, results: Results) -> None:
    if not set(stage.layers) & set(grids.by_layer):
        return
    seen = block.statistics(stage)
    one = Scaled(block=block, stage=stage, scale=torch.ones_like(seen.mean), seen=seen)
    one.round(grids.scales(one.weights(grids)), grids, results)
