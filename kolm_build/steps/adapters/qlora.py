"""``qlora``: LoRA beside weights rounded to four bits (arXiv:2305.14314, equation 5).

The adapted layers' weights are rounded to NF4 in blocks of 64 and taken back before anything is
computed, so the bytes are those of a base kept in four bits; the memory is that of `compute_dtype`.
Scales are float32: the paper's second quantisation, of the scales, is left out. The adapter is
merged into the weights that it saw, W taken back from NF4 (ADPT-11).
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import LoraLayer

from kolm_build.steps._base import NF4
from kolm_build.steps._nf4 import rounded
from kolm_build.steps._training_params import TrainingParams
from kolm_build.steps.adapters.lora import Lora


class Qlora(Lora):
    """LoRA over NF4."""

    stored = NF4
    _dtype = torch.float32

    def load_dtype(self, training: TrainingParams) -> torch.dtype:
        """Float32: weights are rounded to NF4 from what the file holds, and then to bfloat16."""
        self._dtype = super().load_dtype(training)
        return torch.float32

    def attach(self, network: Any) -> Any:
        """PEFT's model around `network`, the adapted layers rounded."""
        made = super().attach(network)
        for module in made.modules():
            if isinstance(module, LoraLayer):
                base = module.get_base_layer()
                base.weight.data = rounded(base.weight)
        for parameter in made.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(self._dtype)
        return made
