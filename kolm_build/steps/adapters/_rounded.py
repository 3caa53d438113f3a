"""Linear layers that compute with rounded weights and are trained as if they did not (DIST-63).

What a layer multiplies with is what `quantise` would store: its codes times its scales, rounded to
nearest. Rounding has no useful derivative; it is taken to be 1 (the straight-through estimator,
arXiv:1308.3432), so the weights that are kept behind the rounded ones move by small steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from kolm_build.core.quantisation import Grid, Scheme
from kolm_build.errors import InvalidRecordError
from kolm_build.numerics.quantised import global_scale_of, nearest, scales, values
from kolm_build.steps.quantisation.layers import FUSED


class RoundedLinear(nn.Linear):
    """A linear layer over the rounded values of its weight.

    Args:
        layer: The layer; its parameters become this one's.
        grid: What its weight is rounded to.
        dtype: What its weight and its scales will be stored in: both are rounded to that before.
    """

    def __init__(self, layer: nn.Linear, grid: Grid, dtype: torch.dtype) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        self.weight = layer.weight
        self.bias = layer.bias
        self.grid = grid
        self._stored_dtype = dtype
        self._values: torch.Tensor | None = None
        self.beside: Sequence[RoundedLinear] = (self,)
        """The layers whose NVFP4 weights share a global scale, itself among them."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """`inputs` by the rounded weights."""
        kept = self.kept_values()
        weight = straight_through(self.weight, kept) if torch.is_grad_enabled() else kept
        return nn.functional.linear(inputs, weight, self.bias)

    def kept_values(self) -> torch.Tensor:
        """The rounded weight, in its dtype and shape, computed once until it is forgotten."""
        if self._values is None:
            with torch.inference_mode(mode=False), torch.no_grad():
                self._values = self._round()
        return self._values

    def forget(self) -> None:
        """Round anew when next asked: the weights have moved, or will."""
        self._values = None

    def stored(self) -> torch.Tensor:
        """The weight as it would be stored, float32."""
        return self.weight.detach().to(self._stored_dtype).float()

    def _round(self) -> torch.Tensor:
        shared = None
        if self.grid.kind == "nvfp4":
            shared = global_scale_of(one.stored() for one in self.beside)
        weight = self.stored()
        chosen = scales(weight, self.grid, dtype=self._stored_dtype, global_scale=shared)
        return values(nearest(weight, chosen)).to(self.weight.dtype)


def straight_through(weight: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    """`rounded`, exactly, with the gradient of `weight`."""
    return rounded + (weight - weight.detach())


def rounded_layers(network: nn.Module) -> dict[str, RoundedLinear]:
    """Those of `network`, by their paths."""
    return {path: one for path, one in network.named_modules() if isinstance(one, RoundedLinear)}


def put_rounded(
    network: nn.Module,
    layers: Sequence[tuple[str, nn.Linear]],
    grid: Callable[[int], Grid],
    dtype: torch.dtype,
) -> None:
    """Put rounded layers in place of `layers`, paths and layers of `network`.

    Args:
        network: The network.
        layers: Which.
        grid: The grid of a layer of so many inputs.
        dtype: What weights and scales will be stored in.

    Raises:
        InvalidRecordError: A group does not divide a layer's inputs.
    """
    for path, layer in layers:
        try:
            network.set_submodule(path, RoundedLinear(layer, grid(layer.in_features), dtype))
        except InvalidRecordError as error:
            raise error.under(path) from None
    made = rounded_layers(network)
    for path, one in made.items():
        one.beside = [made[name] for name in _beside(path) if name in made]


def grid_of(scheme: Scheme, group: int) -> Callable[[int], Grid]:
    """The grid of a layer of so many inputs, as `quantise` chooses it; `group` 0 for the rule."""
    return lambda inputs: scheme.grid(inputs, group=group)


def _beside(path: str) -> Sequence[str]:
    """The names of the layers that run as one with the layer `path` (QUANT-7)."""
    parent, _, last = path.rpartition(".")
    for family in FUSED:
        if last in family:
            return [f"{parent}.{name}" for name in family]
    return [path]


class Refresher(TrainerCallback):
    """Has every layer round anew once in an optimiser step, and not for every row.

    Args:
        network: The network.
    """

    def __init__(self, network: nn.Module) -> None:
        self._layers = list(rounded_layers(network).values())

    def on_step_begin(self, *_args: Any, **_others: Any) -> None:
        """The weights are those of the last step, or a checkpoint's."""
        self.forget()

    def on_step_end(self, *_args: Any, **_others: Any) -> None:
        """They moved."""
        self.forget()

    def forget(self) -> None:
        """Have every layer round anew."""
        for one in self._layers:
            one.forget()


@contextmanager
def rounding_anew(network: nn.Module) -> Iterator[None]:
    """As long as the context lasts the network has other weights: no rounding outlives its ends."""
    refresher = Refresher(network)
    refresher.forget()
    try:
        yield
    finally:
        refresher.forget()
