"""SmoothQuant: large activations are made smaller, and the weights that read them larger.

Source: arXiv:2211.10438, equation 4, with the scale in the norms alone, as there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch

from kolm_build.numerics.quantised import Scales
from kolm_build.steps.quantisation.calibration import Block, Progress, Stage, Statistics, Tokens
from kolm_build.steps.quantisation.folding import Fold
from kolm_build.steps.quantisation.results import Calibrated
from kolm_build.steps.quantisation.rounding import Grids
from kolm_build.steps.quantisation.scaled import Found, Scaled, Scaling

STRENGTH = Fraction(1, 2)
"""How much of the difficulty goes from the activations to the weights."""

_LEAST = 1e-5


def quantise(
    network: Any,
    sequences: Sequence[Tokens],
    grids: Grids,
    *,
    strength: Fraction = STRENGTH,
    on_block: Progress | None = None,
) -> Calibrated:
    """The linear layers that `grids` names, smoothed and rounded to nearest.

    Args:
        network: A causal language model of transformers; it is not changed.
        sequences: What it is calibrated with.
        grids: The grid of each layer.
        strength: From 0, which leaves the activations alone, to 1.
        on_block: Is told of every decoder layer that is done.

    Raises:
        InvalidDataError: A layer is never reached by the calibration rows.
        InvalidRecordError: There is no norm in this architecture that could take a scale.
        NotFiniteError: A layer's inputs are not finite.

    Determinism:
        Bitwise the same on every machine under `portable-1`.
    """

    def find(block: Block, stage: Stage, seen: Statistics) -> Found | None:
        fold = Fold.of_norm(block, stage, grids)
        if fold is None:
            return None
        return fold, fold.settled(scale_of(seen.most, block.weights(stage.layers), strength))

    def scales(one: Scaled) -> Mapping[str, Scales]:
        return grids.scales(one.weights(grids))

    return Scaling(grids=grids, find=find, scales=scales).quantise(network, sequences, on_block)


def scale_of(
    most: torch.Tensor, weights: Mapping[str, torch.Tensor], strength: Fraction
) -> torch.Tensor:
    """The largest |x| to `strength` over the largest |w| to the rest of 1, by input channel.

    Args:
        most: The largest |x| of each channel, shape (columns,), float32.
        weights: The weights of all the layers that read the input.
        strength: From 0 to 1.
    """
    largest = torch.stack([one.abs().amax(dim=0) for one in weights.values()]).amax(dim=0)
    inputs = most.clamp_min(_LEAST).pow(float(strength))
    return (inputs / largest.clamp_min(_LEAST).pow(float(1 - strength))).clamp_min(_LEAST)
