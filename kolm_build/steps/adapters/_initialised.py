"""Low-rank adapters that begin with a part of the weights and leave the rest frozen (ADPT-24)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from peft.tuners.lora import LoraLayer

from kolm_build.steps.adapters.lora import Lora

ADAPTER = "default"
"""PEFT's name of the one adapter."""

Pair = tuple[torch.Tensor, torch.Tensor]


class Initialised(Lora):
    """LoRA with W = W_res + (alpha / r) B0 A0 at the start; W_res is frozen.

    It is written as the LoRA of rank 2 r whose change is (alpha / r) (B A - B0 A0), so the file
    belongs to the original weights and nothing need be factorised again to merge it.
    """

    _start: Mapping[str, Pair]

    @abstractmethod
    def factors(self, weight: torch.Tensor, scale: float) -> Pair:
        """A0 and B0 for `weight`, float32, so that `scale` B0 A0 is the part to train."""

    def attach(self, network: Any) -> Any:
        """PEFT's model around `network`, the adapted layers split."""
        made = super().attach(network)
        self._start = {name: self._split(layer) for name, layer in _layers(made)}
        return made

    def alpha(self) -> int:
        """Twice the recipe's, as the rank is: the scale stays."""
        return 2 * self.params.lora_alpha

    def finished(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A over A0, and B beside -B0."""
        made = {}
        for name, tensor in state.items():
            path, _, side = name.removesuffix(".weight").rpartition(".")
            down, up = self._start[path]
            first = (down if side == "lora_A" else -up).to(tensor.dtype)
            made[name] = torch.cat([tensor, first], dim=0 if side == "lora_A" else 1)
        return made

    def reference(self, network: Any) -> AbstractContextManager[Any]:
        """The network with the factors that it began with."""
        return _swapped(network, self._start)

    def _split(self, layer: Any) -> Pair:
        linear, scale = layer.get_base_layer(), layer.scaling[ADAPTER]
        whole = linear.weight.detach().float()
        down, up = self.factors(whole, scale)
        linear.weight.data = (whole - scale * (up @ down)).to(linear.weight.dtype)
        layer.lora_A[ADAPTER].weight.data = down.clone()
        layer.lora_B[ADAPTER].weight.data = up.clone()
        return down, up


def _layers(network: Any) -> Iterator[tuple[str, Any]]:
    """PEFT's layers, by their paths in PEFT's names."""
    for name, module in network.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


@contextmanager
def _swapped(network: Any, start: Mapping[str, Pair]) -> Iterator[None]:
    """The factors are those of `start` for a while."""
    sides = [
        (layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight, start[name])
        for name, layer in _layers(network)
    ]
    now = [(down.data, up.data) for down, up, _ in sides]
    for down, up, (first_down, first_up) in sides:
        down.data, up.data = first_down, first_up
    try:
        yield
    finally:
        for (down, up, _), (last_down, last_up) in zip(sides, now, strict=True):
            down.data, up.data = last_down, last_up
