"""Rounding to nearest with calibration: only what the layers are fed is looked at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from kolm_build.steps.quantisation.calibration import Block, Progress, Stage, Tokens
from kolm_build.steps.quantisation.results import Calibrated, Results, round_blocks
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

    def round_block(block: Block, stages: Sequence[Stage], results: Results) -> None:
        for stage in stages:
            seen = block.statistics(stage)
            one = Scaled(block=block, stage=stage, scale=torch.ones_like(seen.mean), seen=seen)
            one.round(grids.scales(one.weights(grids)), grids, results)

    return round_blocks(network, sequences, grids, on_block, by=round_block).calibrated()
