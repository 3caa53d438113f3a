"""``lora-fa``: LoRA whose A stays as it was drawn (arXiv:2308.03303)."""

from __future__ import annotations

from typing import Any

from kolm_build.steps.adapters.lora import Lora


class LoraFrozenA(Lora):
    """LoRA of which only B is trained, so that a layer's inputs need not be kept."""

    def attach(self, network: Any) -> Any:
        """PEFT's model around `network`, every A frozen."""
        made = super().attach(network)
        for name, parameter in made.named_parameters():
            if "lora_A" in name:
                parameter.requires_grad_(requires_grad=False)
        return made
