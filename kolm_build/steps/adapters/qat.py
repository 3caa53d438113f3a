"""``qat``: every weight, trained while the linear layers compute with rounded ones.

Quantisation-aware training (arXiv:2305.17888, section 2.2: weights only). With a distillation as
the objective and the model before rounding as the teacher it is quantisation-aware distillation
(arXiv:2601.20088). The result is a whole model, not yet rounded: what `quantise` makes of it,
round to nearest in the same scheme, groups and layers, is what was trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

import torch
from transformers import TrainerCallback

from kolm_build.core.fields import Fields
from kolm_build.steps._bounds import choice
from kolm_build.steps._weights import DTYPES, read_weights
from kolm_build.steps.adapters._change import adapted_layers, check_layers
from kolm_build.steps.adapters._rounded import (
    Refresher,
    RoundedLinear,
    RoundingParams,
    dtypes_of,
    rounded_anew,
    share_scales,
)
from kolm_build.steps.adapters.full import AS_BASE, WEIGHTS, Full
from kolm_build.steps.adapters.lora import modules


class Qat(Full):
    """Every weight, behind rounded ones.

    Args:
        weights_dtype: What the result is rounded to, and so what scales are stored in.
        rounding: How weights are rounded.
        target_modules: Names of the layers that compute with rounded weights; empty for all.
    """

    _dtypes: Mapping[str, torch.dtype]

    def __init__(
        self, weights_dtype: str, rounding: RoundingParams, target_modules: tuple[str, ...]
    ) -> None:
        super().__init__(weights_dtype)
        self.rounding = rounding
        self.target_modules = target_modules

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The training that `fields` describe."""
        return cls(
            choice(fields, "weights_dtype", AS_BASE, (AS_BASE, *DTYPES)),
            RoundingParams.take(fields),
            modules(fields, "target_modules"),
        )

    def look(self, base: Path) -> None:
        """Note what each matrix is stored in."""
        self._dtypes = dtypes_of(read_weights(base / WEIGHTS), self._dtype)

    def attach(self, network: Any) -> Any:
        """`network` with rounded layers in place of those that are named."""
        check_layers(network, self.target_modules)
        for path, layer in adapted_layers(network, self.target_modules):
            grid = self.rounding.grid(path, layer)
            rounded = RoundedLinear(layer, grid, self._dtypes[f"{path}.weight"])
            network.set_submodule(path, rounded)
        share_scales(network)
        return super().attach(network)

    def watchers(self, network: Any) -> Sequence[TrainerCallback]:
        """What has the layers round once in a step."""
        return (Refresher(network),)

    def reference(self, network: Any) -> AbstractContextManager[Any]:
        """The network with the weights that it began with, rounded."""
        return rounded_anew(network, super().reference(network))
