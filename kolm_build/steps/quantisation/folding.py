"""Scaling a layer's input channels by putting the scale into what comes before the layer.

``W x = (W diag(s)) (x / s)``: the columns of W are multiplied, and a norm's weight or a linear
layer's rows are divided. A norm's weight is rounded to the dtype that it is stored in first, and s
is what that rounding left, so nothing is lost between the two sides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch

from kolm_build.steps.quantisation.calibration import Block, Stage
from kolm_build.steps.quantisation.rounding import Grids

PRODUCERS: Mapping[str, str] = {"down_proj": "up_proj", "o_proj": "v_proj"}
"""Linear layers whose outputs reach another one channel by channel, times something of its own."""

_CHANGED = 2.0**-6
"""A block that changes by this share of what it adds computes something else than before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """A place that can take the scale of a stage's input channels.

    Attributes:
        block: The decoder layer.
        stage: Whose inputs are scaled.
        producer: The name of the norm or linear layer before it.
        dtype: What the model's norms and biases are stored in.
    """

    block: Block
    stage: Stage
    producer: str
    dtype: torch.dtype

    @classmethod
    def of_norm(cls, block: Block, stage: Stage, grids: Grids) -> Self | None:
        """The norm before `stage`; None where there is none, or a layer of it is kept as it is."""
        if not stage.norm or not set(stage.layers) <= set(grids.by_layer):
            return None
        return cls(block=block, stage=stage, producer=stage.norm, dtype=grids.model_dtype)

    @classmethod
    def of_linear(cls, block: Block, stage: Stage, grids: Grids) -> Self | None:
        """The linear layer before `stage`; None where none fits, or either is kept as it is."""
        (name, *others) = stage.layers
        parent, _, own = name.rpartition(".")
        before = f"{parent}.{PRODUCERS.get(own, '')}"
        if others or not {name, before} <= set(grids.by_layer):
            return None
        if block.linear(before).out_features != block.linear(name).in_features:
            return None
        return cls(block=block, stage=stage, producer=before, dtype=grids.model_dtype)

    @property
    def is_linear(self) -> bool:
        """Whether the scale goes into rows of a matrix, and not into a norm."""
        return self._producer().weight.dim() > 1

    def settled(self, scale: torch.Tensor) -> torch.Tensor:
        """`scale`, shape (channels,), float32, as this place can take it without any loss."""
        before = self._producer()
        if self.is_linear:
            return scale
        stored = self._stored(before.weight.data / scale)
        usable = (stored != 0) & torch.isfinite(stored)
        return torch.where(usable, before.weight.data / stored, torch.ones_like(scale))

    def apply(self, scale: torch.Tensor) -> bool:
        """Put `scale`, which is settled, in its place, unless that changes what the block computes.

        Returns:
            Whether it is there; if not, the block is as it was.
        """
        old = self._tensors()
        before = self.block.output()
        self._put(scale)
        change = (self.block.output() - before).norm()
        if bool(change <= _CHANGED * (before - self.block.input()).norm()):
            return True
        for tensor, data in old:
            tensor.data = data
        return False

    def changed(self) -> dict[str, torch.Tensor]:
        """The model's other tensors that hold the scale, by their names, as they are stored."""
        before = self._producer()
        names = ("bias",) if self.is_linear else ("weight", "bias")
        return {
            f"{self.producer}.{name}": getattr(before, name).data.to(self.dtype)
            for name in names
            if getattr(before, name, None) is not None
        }

    def _put(self, scale: torch.Tensor) -> None:
        before = self._producer()
        if self.is_linear:
            before.weight.data = before.weight.data / scale[:, None]
        else:
            before.weight.data = self._stored(before.weight.data / scale)
        if getattr(before, "bias", None) is not None:
            before.bias.data = self._stored(before.bias.data / scale)
        for name in self.stage.layers:
            linear = self.block.linear(name)
            linear.weight.data = linear.weight.data * scale

    def _tensors(self) -> list[tuple[torch.nn.Parameter, torch.Tensor]]:
        modules = [self._producer(), *map(self.block.linear, self.stage.layers)]
        parameters = (one for module in modules for one in module.parameters(recurse=False))
        return [(one, one.data) for one in parameters]

    def _producer(self) -> Any:
        return self.block.part(self.producer)

    def _stored(self, values: torch.Tensor) -> torch.Tensor:
        return values.to(self.dtype).float()
