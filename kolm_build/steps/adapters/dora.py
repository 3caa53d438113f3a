"""``dora``: magnitude and direction apart, m V / ||V|| (arXiv:2402.09353, equation 5).

V = W + (alpha / r) B A, m a trained length for each row of V; gradients do not pass through ||V||
(section 4.3 of the paper). PEFT's `LoraConfig(use_dora=True)` makes it.
"""

from __future__ import annotations

from types import MappingProxyType

from kolm_build.steps.adapters.lora import Lora


class Dora(Lora):
    """LoRA with a trained length for each output feature."""

    flags = MappingProxyType({"use_dora": True})
