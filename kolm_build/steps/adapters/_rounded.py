"""Linear layers that compute with rounded weights and are trained as if they did not (DIST-63).

What a layer multiplies with is what `quantise` would store: its codes times its scales, rounded to
nearest. Rounding has no useful derivative; it is taken to be 1 (the straight-through estimator,
arXiv:1308.3432), so the weights that are kept behind the rounded ones move by small steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn
from transformers import TrainerCallback

from kolm_build.core.fields import Fields
from kolm_build.core.quantisation import SCHEMES, Grid, Scheme
from kolm_build.errors import InvalidRecordError
from kolm_build.numerics.quantised import global_scale_of, nearest, scales, values
from kolm_build.runtime.weights import COMPUTE_DTYPES
from kolm_build.runtime.weights import DTYPES as TORCH_DTYPES
from kolm_build.steps._bounds import choice
from kolm_build.steps._weights import Weight
from kolm_build.steps.adapters.full import AS_BASE
from kolm_build.steps.quantisation.layers import FUSED
from kolm_build.steps.quantisation.params import take_group

WEIGHT_ONLY = ("fp8", "mxfp4", "nvfp4a16", "w4a16", "w4a16-asym", "w8a16")
"""The schemes that round weights and nothing else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundingParams:
    """What a recipe may say of rounding.

    Attributes:
        scheme: What `quantise` will be asked.
        group: Columns that share a scale; 0 for the rule.
    """

    scheme: Scheme
    group: int

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The parameters in `fields`.

        Raises:
            InvalidRecordError: A word is unknown, or a group has no meaning in the scheme.
        """
        scheme = SCHEMES[choice(fields, "rounding", "w4a16", WEIGHT_ONLY)]
        return cls(scheme=scheme, group=take_group(fields, scheme, "rounding_group"))

    def grid(self, path: str, layer: nn.Linear) -> Grid:
        """The grid of the layer `path`, as `quantise` chooses it.

        Raises:
            InvalidRecordError: The group does not divide its inputs.
        """
        try:
            return self.scheme.grid(layer.in_features, group=self.group)
        except InvalidRecordError as error:
            raise error.under(path) from None


class Rounding:
    """The rounded values of a weight that moves, computed once until they are forgotten.

    Args:
        weight: Gives the weight as it is now, floating point.
        grid: What it is rounded to.
        dtype: What it and its scales will be stored in: both are rounded to that before.
    """

    def __init__(self, weight: Callable[[], torch.Tensor], grid: Grid, dtype: torch.dtype) -> None:
        self._weight = weight
        self._grid = grid
        self._dtype = dtype
        self._values: torch.Tensor | None = None
        self.beside: Sequence[Rounding] = (self,)
        """Those whose NVFP4 weights share a global scale, itself among them."""

    def through(self) -> torch.Tensor:
        """The rounded weight, exactly; its gradient is the weight's."""
        if not torch.is_grad_enabled():
            return self.values()
        weight = self._weight()
        return self.values() + (weight - weight.detach())

    def values(self) -> torch.Tensor:
        """The rounded weight, in its dtype and shape, without a gradient."""
        if self._values is None:
            with torch.inference_mode(mode=False), torch.no_grad():
                self._values = self.round()
        return self._values

    def forget(self) -> None:
        """Round anew when next asked: the weight has moved, or will."""
        self._values = None

    def round(self) -> torch.Tensor:
        """What `quantise` would store of the weight, taken back; in the weight's dtype."""
        shared = None
        if self._grid.kind == "nvfp4":
            shared = global_scale_of(one.stored() for one in self.beside)
        weight = self.stored()
        chosen = scales(weight, self._grid, dtype=self._dtype, global_scale=shared)
        return values(nearest(weight, chosen)).to(self._weight().dtype)

    def stored(self) -> torch.Tensor:
        """The weight as it would be stored, float32."""
        return self._weight().detach().to(self._dtype).float()


class RoundedLinear(nn.Linear):
    """A linear layer over the rounded values of its weight.

    Args:
        layer: The layer; its parameters become this one's.
        grid: What its weight is rounded to.
        dtype: What its weight and its scales will be stored in.
    """

    def __init__(self, layer: nn.Linear, grid: Grid, dtype: torch.dtype) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        self.weight = layer.weight
        self.bias = layer.bias
        self.rounding = Rounding(lambda: self.weight, grid, dtype)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """`inputs` by the rounded weight."""
        return nn.functional.linear(inputs, self.rounding.through(), self.bias)


def roundings(network: nn.Module) -> dict[str, Rounding]:
    """Those of the layers of `network`, by the layers' paths."""
    found = ((path, getattr(one, "rounding", None)) for path, one in network.named_modules())
    return {path: one for path, one in found if isinstance(one, Rounding)}


def share_scales(network: nn.Module) -> None:
    """Tell the layers of `network` that run as one of each other (QUANT-7)."""
    made = roundings(network)
    for path, one in made.items():
        one.beside = [made[name] for name in _beside(path) if name in made]


def _beside(path: str) -> Sequence[str]:
    parent, _, last = path.rpartition(".")
    for family in FUSED:
        if last in family:
            return [f"{parent}.{name}" for name in family]
    return [path]


def dtypes_of(weights: Sequence[Weight], chosen: str) -> Mapping[str, torch.dtype]:
    """What each of `weights` will be stored in, by its name: `chosen`, or as it is for ``base``."""
    return {
        one.name: TORCH_DTYPES[one.dtype] if chosen == AS_BASE else COMPUTE_DTYPES[chosen]
        for one in weights
        if one.dtype in TORCH_DTYPES
    }


class Refresher(TrainerCallback):
    """Has every layer round anew once in an optimiser step, and not for every row.

    Args:
        network: The network.
    """

    def __init__(self, network: nn.Module) -> None:
        self._roundings = list(roundings(network).values())

    def on_step_begin(self, *_args: Any, **_others: Any) -> None:
        """The weights are those of the last step, or a checkpoint's."""
        self.forget()

    def on_step_end(self, *_args: Any, **_others: Any) -> None:
        """They moved."""
        self.forget()

    def forget(self) -> None:
        """Have every layer round anew."""
        for one in self._roundings:
            one.forget()


@contextmanager
def rounded_anew(network: nn.Module, other: AbstractContextManager[Any]) -> Iterator[None]:
    """The network with the weights that the context `other` gives it, rounded.

    Nothing that was rounded is kept where the context begins or ends.
    """
    refresher = Refresher(network)
    refresher.forget()
    try:
        with other:
            yield
    finally:
        refresher.forget()
