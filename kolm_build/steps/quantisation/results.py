"""What a calibrated method gives back, layer after layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from kolm_build.errors import InvalidRecordError
from kolm_build.numerics.quantised import Quantised, values
from kolm_build.steps.quantisation.calibration import (
    Block,
    Progress,
    Stage,
    Statistics,
    Tokens,
    check_reached,
    walk,
)
from kolm_build.steps.quantisation.folding import Fold
from kolm_build.steps.quantisation.rounding import Grids


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """Squared errors of a layer's outputs, summed over outputs and calibration tokens.

    Attributes:
        nearest: Of the layer's weights rounded to nearest.
        chosen: Of the weights that the method chose.
        signal: The squared outputs themselves, for comparison.
    """

    nearest: float
    chosen: float
    signal: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """What a method made of the linear layers inside a network's decoder layers.

    Attributes:
        quantised: The matrix of each layer, by the layer's name.
        changed: Other tensors of the model that a scale was folded into, by the tensor's name, in
            the dtype that the model stores them in.
        inputs: The largest |x| among the inputs of each layer, by the layer's name.
        losses: The errors of each layer, by the layer's name.
        columns: What a layer's input channels were multiplied by, shape (columns,), float32, by
            the layer's name; only where a scale was folded in.
        rows: What a layer's output channels were divided by, shape (rows,), likewise.
        folded: Names of the norms and linear layers that took a scale, sorted.
        tokens: How many tokens the layers were calibrated with.
    """

    quantised: Mapping[str, Quantised]
    changed: Mapping[str, torch.Tensor]
    inputs: Mapping[str, float]
    losses: Mapping[str, Loss]
    columns: Mapping[str, torch.Tensor]
    rows: Mapping[str, torch.Tensor]
    folded: tuple[str, ...]
    tokens: int

    def scaled(self, layer: str, weight: torch.Tensor) -> torch.Tensor:
        """The model's own `weight` of `layer`, float32, with the scales that were folded in."""
        if layer in self.columns:
            weight = weight * self.columns[layer]
        if layer in self.rows:
            weight = weight / self.rows[layer][:, None]
        return weight


@dataclass(slots=True)
class Results:
    """`Calibrated`, as it grows."""

    quantised: dict[str, Quantised] = field(default_factory=dict)
    changed: dict[str, torch.Tensor] = field(default_factory=dict)
    inputs: dict[str, float] = field(default_factory=dict)
    losses: dict[str, Loss] = field(default_factory=dict)
    columns: dict[str, torch.Tensor] = field(default_factory=dict)
    rows: dict[str, torch.Tensor] = field(default_factory=dict)
    folded: list[str] = field(default_factory=list)
    tokens: int = 0

    def fold(self, fold: Fold, scale: torch.Tensor) -> torch.Tensor:
        """Put `scale`, which is settled, where `fold` says; all 1 where it could not be put."""
        if not fold.apply(scale):
            return torch.ones_like(scale)
        self.folded.append(fold.producer)
        self.columns |= dict.fromkeys(fold.stage.layers, scale)
        if fold.is_linear:
            self.rows[fold.producer] = scale
        self.changed |= fold.changed()
        return scale

    def add(
        self,
        block: Block,
        name: str,
        matrix: Quantised,
        *,
        plain: torch.Tensor,
        seen: Statistics,
    ) -> None:
        """Note that the layer `name` of `block` becomes `matrix`, and compute with it from now on.

        Args:
            block: The decoder layer.
            name: The linear layer's name.
            matrix: What it becomes.
            plain: The layer's original weights rounded to nearest, for inputs as in `seen`.
            seen: What the layer was fed.
        """
        linear = block.linear(name)
        weight, gram = linear.weight.data, seen.gram32()
        found = values(matrix)
        self.losses[name] = Loss(
            nearest=_total(plain - weight, gram),
            chosen=_total(found - weight, gram),
            signal=_total(weight, gram),
        )
        self.quantised[name] = matrix
        self.inputs[name] = float(seen.most.max())
        self.tokens = self.tokens or seen.tokens
        linear.weight.data = found

    def check_folded(self) -> None:
        """Refuse a method that could do nothing.

        Raises:
            InvalidRecordError: No scale found a place.
        """
        if not self.folded:
            raise InvalidRecordError(
                "this architecture has no place for the scales of input channels",
                expected="norms or linear layers in front of the layers that are quantised",
                advice='Use method = "gptq" or "rtn"; or keep all layers of an input, or none.',
            )

    def calibrated(self) -> Calibrated:
        """All that was added."""
        return Calibrated(
            quantised=self.quantised,
            changed=self.changed,
            inputs=self.inputs,
            losses=self.losses,
            columns=self.columns,
            rows=self.rows,
            folded=tuple(sorted(self.folded)),
            tokens=self.tokens,
        )


RoundBlock = Callable[[Block, Sequence[Stage], Results], None]
"""Rounds the stages of a block, and adds what became of them."""


def round_blocks(
    network: Any,
    sequences: Sequence[Tokens],
    grids: Grids,
    on_block: Progress | None,
    *,
    by: RoundBlock,
) -> Results:
    """What `by` makes of the decoder layers of `network`, first to last.

    Args:
        network: A causal language model of transformers; it is not changed.
        sequences: What it is calibrated with.
        grids: The grid of each layer; `by` is not asked for a stage that none of them is of.
        on_block: Is told of every decoder layer that is done.
        by: The method.

    Raises:
        InvalidDataError: A layer is never reached by the calibration rows.
    """
    results = Results()
    for block in walk(network, sequences, on_block):
        stages = [stage for stage in block.stages if set(stage.layers) & set(grids.by_layer)]
        by(block, stages, results)
    check_reached(network, tuple(grids.by_layer), tuple(results.quantised))
    return results


def squared_outputs(weight: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    """Sum over the calibration tokens of (weight x)², by row of `weight`.

    Args:
        weight: Shape (rows, columns), float32; a difference of weights for an error.
        gram: Sum of x x', shape (columns, columns), float32.

    Returns:
        Shape (rows,), float32; never below 0.
    """
    return ((weight @ gram) * weight).sum(dim=1).clamp_min(0.0)


def _total(weight: torch.Tensor, gram: torch.Tensor) -> float:
    return float(squared_outputs(weight, gram).sum())
