"""A model's tensors as they are written: each target's codes and scales in place of its weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from kolm_build.core.quantisation import Grid
from kolm_build.numerics.quantised import (
    Quantised,
    global_scale_of,
    joined,
    nearest,
    pack,
    scales,
)
from kolm_build.steps._entry import Events
from kolm_build.steps._tensors import tensor_of, weight_of
from kolm_build.steps._weights import Weight
from kolm_build.steps.quantisation.layers import Chosen, Target
from kolm_build.steps.quantisation.methods import Choice
from kolm_build.steps.quantisation.report import Cost, cost_of, row_blocks


@dataclass(slots=True)
class RoundedModel:
    """What rounding made of a model.

    Attributes:
        weights: Every tensor to write.
        costs: What each matrix cost, by its layer's name; a tied head has none of its own.
    """

    weights: list[Weight] = field(default_factory=list)
    costs: dict[str, Cost] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounding:
    """How a model is rounded.

    Attributes:
        weights: Its tensors.
        chosen: What becomes of its layers.
        choice: What a method chose for them.
        scale_dtype: What a plain scale is stored in.
        events: Is told of every matrix.
    """

    weights: Sequence[Weight]
    chosen: Chosen
    choice: Choice
    scale_dtype: torch.dtype
    events: Events

    def rounded(self) -> RoundedModel:
        """The model, one matrix after another."""
        model = RoundedModel()
        shared = dict(self._shared_scales())
        targets = {one.layer.tensor: one for one in self.chosen.targets.values()}
        for done, weight in enumerate(self.weights, start=1):
            target = targets.get(weight.name)
            if target is None:
                model.weights.append(self._plain(weight))
            else:
                self._round(model, target, weight, shared.get(target.layer.name))
            self.events.progress(done, len(self.weights), unit="tensor")
        return model

    def _round(
        self, model: RoundedModel, target: Target, weight: Weight, shared: torch.Tensor | None
    ) -> None:
        name = target.layer.name
        plain = tensor_of(weight).float()
        matrix = self.choice.quantised.get(name)
        if matrix is None:
            matrix = rounded_to_nearest(plain, target.grid, self.scale_dtype, shared)
        model.costs[name] = cost_of(self.choice.scaled(name, plain), matrix)
        packed = pack(matrix, target.form) | self._inputs(target)
        model.weights += _named(name, packed)
        for head in self.chosen.tied_to(target.layer):
            model.weights += _named(head, {"weight_scale": packed["weight_scale"]})

    def _plain(self, weight: Weight) -> Weight:
        changed = self.choice.changed.get(weight.name)
        return weight if changed is None else weight_of(weight.name, changed)

    def _shared_scales(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The global scale of each NVFP4 layer that no method has chosen one for."""
        by_name = {weight.name: weight for weight in self.weights}
        for name, target in self.chosen.targets.items():
            if target.grid.kind == "nvfp4" and name not in self.choice.quantised:
                names = self.chosen.fused(name)
                yield (
                    name,
                    global_scale_of(tensor_of(by_name[f"{one}.weight"]).float() for one in names),
                )

    def _inputs(self, target: Target) -> dict[str, torch.Tensor]:
        """The scale of what a layer reads, where it is from calibration (QUANT-26)."""
        if target.activations != "static":
            return {}
        most = torch.tensor([self.choice.inputs[target.layer.name]], dtype=torch.float32)
        if target.grid.kind == "nvfp4":
            return {"input_global_scale": global_scale_of([most])}
        return {"input_scale": (most / 127.5).to(self.scale_dtype)}


def rounded_to_nearest(
    weight: torch.Tensor, grid: Grid, dtype: torch.dtype, shared: torch.Tensor | None
) -> Quantised:
    """`weight`, float32, on scales of its own, some rows after others; the bits are as of all."""
    return joined(
        [
            nearest(some, scales(some, grid, dtype=dtype, global_scale=shared))
            for some in (weight[rows] for rows in row_blocks(weight))
        ]
    )


def _named(layer: str, tensors: Mapping[str, torch.Tensor]) -> list[Weight]:
    return [weight_of(f"{layer}.{part}", tensor) for part, tensor in tensors.items()]
