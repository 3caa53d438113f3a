"""``qat-lora``: low-rank adapters, trained while their layers compute with the rounded sum.

A layer multiplies with W + (alpha / r) B A, rounded as `quantise` would round it once it is merged
(L4Q, arXiv:2402.04902): merging a plain LoRA adapter and then rounding changes what was trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

import torch
from peft.tuners.lora.layer import Linear
from torch import nn
from transformers import TrainerCallback

from kolm_build.core.fields import Fields
from kolm_build.steps._adapter_kinds import lora_delta
from kolm_build.steps._bounds import count
from kolm_build.steps._training_params import TrainingParams
from kolm_build.steps._weights import read_weights
from kolm_build.steps.adapters._change import float32_alone
from kolm_build.steps.adapters._rounded import (
    Refresher,
    Rounding,
    RoundingParams,
    dtypes_of,
    rounded_anew,
    share_scales,
)
from kolm_build.steps.adapters.full import AS_BASE, WEIGHTS
from kolm_build.steps.adapters.lora import Lora, LoraParams, modules

PREFIX = "base_model.model."
"""What PEFT puts before a layer's path."""


class RoundedLora(Linear):
    """PEFT's layer, computing with the rounded sum of the weight and the adapter's change."""

    rounding: Rounding
    settings: Mapping[str, int | bool | tuple[str, ...]]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """`inputs` by the rounded sum; without its adapter by the rounded weight."""
        return nn.functional.linear(inputs, self.rounding.through(), self.get_base_layer().bias)

    def summed(self) -> torch.Tensor:
        """The weight with the adapter's change, as `merge` computes it, float32."""
        base: torch.Tensor = self.get_base_layer().weight
        if self.disable_adapters:
            return base
        (name,) = self.active_adapters
        parts = {
            "lora_A.weight": self.lora_A[name].weight,
            "lora_B.weight": self.lora_B[name].weight,
        }
        return base + lora_delta(parts, self.settings)


class QatLora(Lora):
    """LoRA behind rounded weights.

    Args:
        params: The recipe's words; nothing is dropped, and adapters are stored as float32.
        rounding: How the sums are rounded.
    """

    _dtypes: Mapping[str, torch.dtype]

    def __init__(self, params: LoraParams, rounding: RoundingParams) -> None:
        super().__init__(params)
        self.rounding = rounding

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The adapters that `fields` describe."""
        params = LoraParams(
            lora_r=count(fields, "lora_r", 16),
            lora_alpha=count(fields, "lora_alpha", 32),
            lora_dropout=0.0,
            target_modules=modules(fields, "target_modules"),
            adapter_dtype="fp32",
        )
        return cls(params, RoundingParams.take(fields))

    def load_dtype(self, training: TrainingParams) -> torch.dtype:
        """Float32, in which `merge` adds.

        Raises:
            InvalidRecordError: The recipe asks for another.
        """
        return float32_alone(training, "sums are rounded from float32")

    def look(self, base: Path) -> None:
        """Note what each matrix is stored in: merged, it is that again."""
        self._dtypes = dtypes_of(read_weights(base / WEIGHTS), AS_BASE)

    def attach(self, network: Any) -> Any:
        """PEFT's model around `network`, its layers rounding."""
        made = super().attach(network)
        settings = {
            "lora_alpha": self.params.lora_alpha,
            "r": self.params.lora_r,
            "use_rslora": False,
        }
        for path, layer in made.named_modules():
            if isinstance(layer, Linear):
                plain = path.removeprefix(PREFIX)
                grid = self.rounding.grid(plain, layer.get_base_layer())
                # PEFT made it, and finds it by its class; only what it computes is another thing.
                layer.__class__ = RoundedLora
                layer.settings = settings
                layer.rounding = Rounding(layer.summed, grid, self._dtypes[f"{plain}.weight"])
        share_scales(made)
        return made

    def watchers(self, network: Any) -> Sequence[TrainerCallback]:
        """What has the layers round once in a step."""
        return (Refresher(network),)

    def reference(self, network: Any) -> AbstractContextManager[Any]:
        """The network without its adapters, its layers rounded."""
        return rounded_anew(network, super().reference(network))
